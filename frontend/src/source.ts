// What is uploaded: a file of the browser's, or (in `node.ts`) of the disk; and how it is known again after a reload.

import type { FileReader as TusReader } from 'tus-js-client'
import { UploadError } from './errors.js'

/** A file to upload. size: bytes. lastModified: milliseconds since the epoch, 0 if nobody knows. */
export interface Source {
  readonly name: string
  readonly type: string
  readonly size: number
  readonly lastModified: number
  /** What tus-js-client takes. */
  readonly data: unknown
  /** How it reads that, where its own way does not do. */
  readonly reader?: TusReader
  /** Closes what an attempt left open. */
  release?(): void
  /** The bytes from `start` to before `end`. Throws if the file is gone, or is not what it was. */
  read(start: number, end: number): Promise<Uint8Array>
  /** Whether the file is not what it was; one that is gone was sent as it was. */
  isChanged?(): Promise<boolean>
}

/** What a page has. A Blob has no name; give one in the metadata, if it matters. */
export function sourceOf(file: Blob | Source): Source {
  if (!(typeof Blob !== 'undefined' && file instanceof Blob)) return file as Source
  const named = file as Blob & { name?: string; lastModified?: number }
  return {
    name: named.name ?? '',
    type: file.type,
    size: file.size,
    lastModified: named.lastModified ?? 0,
    data: file,
    async read(start, end) {
      return new Uint8Array(await file.slice(start, end).arrayBuffer())
    },
    async isChanged() {
      try {
        await file.slice(0, 1).arrayBuffer()
        return false
      } catch (problem) {
        return problem instanceof DOMException && problem.name === 'NotReadableError'
      }
    },
  }
}

const SAMPLE = 64 * 1024

/**
 * Tells a file from others without reading it whole: its name, type, size and time, and bytes from its beginning, middle and
 * end. It is no proof that two files are the same; a file that was changed in place would have to keep all of these.
 */
export async function fingerprintOf(source: Source): Promise<string> {
  const { name, type, size, lastModified } = source
  const middle = Math.max(0, Math.floor(size / 2) - SAMPLE / 2)
  const starts = new Set([0, middle, Math.max(0, size - SAMPLE)])
  const sums: string[] = []
  for (const start of starts) {
    sums.push(sum(await checked(source.read(start, Math.min(size, start + SAMPLE)))))
  }
  return [size, lastModified, type, sums.join('.'), name].join('-')
}

/** Fails with an error of kind `source` if the file cannot be read any more. Browsers then tell no more than "network error". */
export async function checkReadable(source: Source): Promise<void> {
  await checked(source.read(0, Math.min(1, source.size)))
}

/** What reading comes to. */
export async function checked<T>(reading: Promise<T>): Promise<T> {
  try {
    return await reading
  } catch (cause) {
    throw new UploadError('source', 'the file cannot be read, or was changed', { cause })
  }
}

/** 64 bits of two FNV-1a sums; `crypto.subtle` is there on secure origins alone. */
function sum(bytes: Uint8Array): string {
  let one = 0x811c9dc5
  let two = 0x01000193
  for (const byte of bytes) {
    one = Math.imul(one ^ byte, 0x01000193)
    two = Math.imul(two ^ byte ^ (one >>> 13), 0x85ebca6b)
  }
  return [one, two].map((half) => (half >>> 0).toString(16).padStart(8, '0')).join('')
}
