// The operators' API: documents as its OpenAPI document describes them, requests, and the stream.

export interface Session {
  operator: string
  via: 'link' | 'token' | 'header' | 'application'
  version: string
  shows_metadata: boolean
  revokes: boolean
  downloads: boolean
  delivers_events: boolean
  finds_duplicates: boolean
  uploads_url: string
}

export interface Trouble {
  code: string
  detail: string
  count: number | null
}

export interface Overview {
  at: number
  ready: boolean
  receiving: number
  connections: number
  rate: number
  known: number | null
  unfinished: number | null
  due: number | null
  finished_hour: number | null
  finished_day: number | null
  list_is_whole: boolean
  free: number | null
  reserve: number
  spool: number | null
  workers: number | null
  scheduler: number | null
  redis: 'ok' | 'away' | 'none'
  problems: Trouble[]
}

export interface Period {
  bytes: number
  created: number
  finished: number
  refused: number
  duplicates: number
}

export interface Hour {
  seconds: number
  periods: Period[]
  today: Period
}

export interface Body {
  id: string
  name: string | null
  owner: string
  client: string
  server: string
  offset: number
  size: number | null
  rate: number
  left: number | null
  silent: number
}

export interface Live {
  at: number
  total: number
  rate: number
  bodies: Body[]
}

export interface Snapshot {
  overview: Overview
  live: Live
  period: Period
}

export type State = 'uploading' | 'waiting' | 'finished' | 'part' | 'expired' | 'unreadable'

export interface UploadRow {
  id: string
  name: string | null
  owner: string
  state: State
  offset: number
  size: number | null
  created: number
  changed: number
  finished: number | null
  expires: number | null
  problem: string | null
}

export interface UploadPage {
  uploads: UploadRow[]
  next: string | null
  total: number | null
  is_whole: boolean
}

export interface KeptEvent {
  id: string
  upload: string
  type: string | null
  kept: number
  attempts: number
  next: number | null
  hooks: string[]
  problem: string | null
  box: 'waiting' | 'failed'
}

export interface Moment {
  at: number
  what: 'created' | 'byte' | 'finished' | 'event' | 'failed-event' | 'expires'
  detail: string | null
}

export interface UploadDetail extends UploadRow {
  metadata: Record<string, string> | null
  is_partial: boolean
  is_final: boolean
  parts: string[]
  path: string
  fingerprint: string | null
  revoked: boolean
  timeline: Moment[]
  events: KeptEvent[]
}

export interface EventPage {
  events: KeptEvent[]
  waiting: number
  failed: number
  oldest: number | null
  delivered: Record<string, number>
}

export interface Jobs {
  queues: {
    name: string
    waiting: number
    running: number
    failed: number
    oldest: number | null
  }[]
  workers: {
    name: string
    host: string
    pid: number
    state: string
    heard: number
    job: string | null
  }[]
  scheduler: number | null
  schedule: Record<string, number>
  sweeps: {
    kind: 'due' | 'all'
    began: number
    ended: number
    seen: number
    expired: number
    finished: number
    remains: number
    failed: number
  }[]
}

export interface Fingerprint {
  fingerprint: string
  upload: string
  owner: string
  state: 'pending' | 'complete' | 'ending'
  created: number
  completed: number | null
  expires: number
}

export interface FingerprintPage {
  fingerprints: Fingerprint[]
  next: string | null
  refused: number
}

export interface OwnerPage {
  owners: {
    owner: string
    uploads: number
    open: number
    bytes: number
    counted: number | null
    revoked: number | null
  }[]
  next: string | null
  total: number
  max_size: number | null
  quota_bytes: number | null
  quota_uploads: number | null
  is_counting: boolean
}

export interface SettingsPage {
  settings: {
    name: string
    group: string
    value: boolean | number | string | string[] | null
    origin: string | null
    description: string
  }[]
}

export interface Log {
  lines: { at: number; level: 'warning' | 'error'; text: string }[]
}

export interface Actions {
  actions: { at: number; operator: string; name: string; detail: string }[]
}

export interface Done {
  count: number
  detail: string
  is_running: boolean
}

/** A refusal of the server, or none that could be read. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
  ) {
    super(detail)
  }
}

// Relative, as the page may be mounted below a prefix.
const API = 'admin/api/v1'
/** What no page of another site can send without being asked first. */
const MARK = { 'X-Tusd-Admin': '1' }

let onSignedOut: () => void = () => {}

/** Call this when a request says that nobody is signed in any more. */
export function whenSignedOut(listener: () => void): void {
  onSignedOut = listener
}

async function ask<T>(path: string, init: RequestInit = {}): Promise<T> {
  const response = await fetch(`${API}${path}`, { ...init, cache: 'no-store' })
  if (response.ok) return (response.status === 204 ? undefined : await response.json()) as T
  const problem = await response.json().catch(() => ({}))
  if (response.status === 401 && path !== '/session') onSignedOut()
  throw new ApiError(response.status, problem.code ?? '', problem.detail ?? response.statusText)
}

export function get<T>(
  path: string,
  query: Record<string, string | number | null> = {},
): Promise<T> {
  const wanted = Object.entries(query).filter(([, value]) => value !== null && value !== '')
  const search = new URLSearchParams(wanted.map(([name, value]) => [name, String(value)]))
  return ask<T>(wanted.length ? `${path}?${search}` : path)
}

export function act(name: string, order: Record<string, unknown>): Promise<Done> {
  return ask<Done>(`/actions/${name}`, {
    method: 'POST',
    headers: { ...MARK, 'Content-Type': 'application/json' },
    body: JSON.stringify(order),
  })
}

const pathOf = (id: string): string => id.split('/').map(encodeURIComponent).join('/')

export const upload = (id: string): Promise<UploadDetail> => get(`/uploads/${pathOf(id)}`)
export const contentUrl = (id: string): string => `${API}/content/${pathOf(id)}`
export const session = (): Promise<Session> => get('/session')

/** The browser did not keep the cookie of a session. */
export class NoCookies extends Error {}

export function openByLink(code: string): Promise<Session> {
  return open({
    headers: { ...MARK, 'Content-Type': 'application/json' },
    body: JSON.stringify({ code }),
  })
}

export function openByToken(token: string): Promise<Session> {
  return open({ headers: { ...MARK, Authorization: `Bearer ${token}` } })
}

/** Asks the browser by a cookie: `navigator.cookieEnabled` is true also where they are blocked for this site. */
function keepsCookies(): boolean {
  const set = (value: string) => Object.assign(document, { cookie: `tusd_admin_kept=${value}` })
  set('1; SameSite=Strict')
  const kept = document.cookie.includes('tusd_admin_kept=')
  set('; Max-Age=0')
  return kept
}

async function open(init: RequestInit): Promise<Session> {
  // A link is good for once: it is not used in vain.
  if (!keepsCookies()) throw new NoCookies()
  await ask('/session', { method: 'POST', ...init })
  return session().catch((problem) => {
    throw problem instanceof ApiError && problem.status === 401 ? new NoCookies() : problem
  })
}

export const close = (): Promise<void> => ask('/session', { method: 'DELETE', headers: MARK })

/** Follows the stream while the page is seen; returns what ends it. */
export function follow(
  onSnapshot: (snapshot: Snapshot) => void,
  onConnection: (isOpen: boolean) => void,
): () => void {
  let source: EventSource | undefined
  const end = (): void => {
    source?.close()
    source = undefined
  }
  const begin = (): void => {
    if (document.hidden) end()
    if (document.hidden || source) return
    const opened = new EventSource(`${API}/stream`)
    source = opened
    opened.onopen = () => onConnection(true)
    opened.onmessage = (event) => onSnapshot(JSON.parse(event.data))
    opened.addEventListener('end', () => {
      end()
      onSignedOut()
    })
    opened.onerror = () => {
      onConnection(false)
      // A refusal ends the stream for good; the request says why.
      if (opened.readyState !== EventSource.CLOSED) return
      end()
      session().then(
        () => setTimeout(begin, 1000),
        (problem) =>
          problem instanceof ApiError && problem.status === 401
            ? onSignedOut()
            : setTimeout(begin, 1000),
      )
    }
  }
  document.addEventListener('visibilitychange', begin)
  begin()
  return () => {
    document.removeEventListener('visibilitychange', begin)
    end()
  }
}
