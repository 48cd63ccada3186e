// The digest of a file's content, as a metadata key by which the server tells duplicates (`--duplicate-fingerprint-key sha256`).
// Computed in a worker, so that the page stays alive; where there is none, in pieces between which the page can do other things.

import { Sha256 } from './sha256.js'
import type { Source } from './source.js'

export interface DigestOptions {
  /** Bytes up to which a file is read for it: 256 MiB. Larger files are uploaded without. */
  maxSize?: number
  /** The metadata key: `sha256`. */
  key?: string
}

const PIECE = 4 * 1024 * 1024

/** SHA-256 in hexadecimal. Throws if the file cannot be read, and what the signal was aborted with. */
export async function digestOf(source: Source, signal: AbortSignal): Promise<string> {
  const { data } = source
  if (typeof Worker === 'undefined' || !(typeof Blob !== 'undefined' && data instanceof Blob)) {
    return inPieces(source, signal)
  }
  const worker = startWorker()
  if (worker === null) return inPieces(source, signal)
  try {
    return (await inWorker(worker, data, signal)) ?? (await inPieces(source, signal))
  } finally {
    worker.terminate()
  }
}

export async function inPieces(
  source: Pick<Source, 'size' | 'read'>,
  signal?: AbortSignal,
): Promise<string> {
  const sum = new Sha256()
  for (let at = 0; at < source.size; at += PIECE) {
    sum.update(await source.read(at, Math.min(source.size, at + PIECE)))
    signal?.throwIfAborted()
  }
  return sum.digest()
}

/** Null where the page may not: a policy forbids it, or its scripts come from another origin. */
function startWorker(): Worker | null {
  try {
    return new Worker(new URL('./digest-worker.js', import.meta.url), { type: 'module' })
  } catch {
    return null
  }
}

/** Null if the worker's script is not there, or it could not read the file, which the page will see as well. */
function inWorker(worker: Worker, data: Blob, signal: AbortSignal): Promise<string | null> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason)
    signal.addEventListener('abort', stop, { once: true })
    const end = (digest: string | null) => {
      signal.removeEventListener('abort', stop)
      resolve(digest)
    }
    worker.onmessage = ({ data: digest }: MessageEvent<string | null>) => end(digest)
    worker.onerror = () => end(null)
    if (signal.aborted) stop()
    worker.postMessage(data)
  })
}
