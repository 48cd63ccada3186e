// Sizes, durations and times for people.

import { text } from './texts.js'

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']
/** The reader's own, whatever the language of the texts: English days are written in two ways. */
const locale = navigator.language
const numbers = new Intl.NumberFormat(locale)
const times = new Intl.DateTimeFormat(locale, { dateStyle: 'short', timeStyle: 'medium' })

export const count = (value: number): string => numbers.format(value)

/** A size in its largest unit of 1000s. */
export function size(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000
    unit += 1
  }
  const digits = unit > 0 && value < 9.95 ? 1 : 0
  return `${value.toLocaleString(locale, { maximumFractionDigits: digits })} ${UNITS[unit]}`
}

/** A duration in its largest unit. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds))
  if (whole < 100) return `${whole} s`
  if (whole < 6000) return `${Math.round(whole / 60)} min`
  if (whole < 172_800) return `${Math.round(whole / 3600)} h`
  return `${Math.round(whole / 86_400)} d`
}

const now = (): number => Date.now() / 1000

/** How long ago a time is, in seconds since the epoch. */
export const since = (at: number): string => text('ago', duration(now() - at))

/** How far away a time is. */
export const until = (at: number): string =>
  at > now() ? text('inTime', duration(at - now())) : since(at)

/** A time of day. */
export const clock = (at: number): string => times.format(new Date(at * 1000))

/** A name as it is: a character that would turn its order round, or that nobody sees, is shown as one. */
export const visible = (name: string): string =>
  name.replace(/[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/gu, '\u{FFFD}')

/** An id that fits into a column. */
export const short = (id: string): string => (id.length > 16 ? `${id.slice(0, 12)}…` : id)
