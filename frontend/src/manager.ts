// Starts uploads, a few at a time, knows which of them go on, and which were left unfinished by a page that is gone.

import { Credentials, type GetAccessToken } from './credentials.js'
import { UploadError } from './errors.js'
import { Emitter } from './events.js'
import { removeUpload } from './removal.js'
import { fingerprintOf, type Source, sourceOf } from './source.js'
import {
  browserHolding,
  defaultStore,
  type Holding,
  type UploadRecord,
  type UploadStore,
} from './store.js'
import {
  type Beginning,
  digestSettings,
  type Shared,
  Upload,
  type UploadOptions,
  type UploadState,
  uploadIdOf,
} from './upload.js'
import { browserNetwork, type Network, Slots, Stopped } from './waiting.js'

export interface UploadManagerOptions extends Partial<Omit<UploadOptions, 'endpoint'>> {
  /** The URL of the server's collection, for instance `https://uploads.example/files/`. */
  endpoint: string | URL
  /** Not needed where the server asks nobody for tokens. */
  getAccessToken?: GetAccessToken
  /** How many uploads run at a time: 3. */
  concurrency?: number
  /** Where unfinished uploads are kept: IndexedDB in browsers, memory elsewhere. */
  store?: UploadStore
  /** Where upload tokens are renewed: `/auth/refresh-upload-token` at the endpoint's origin. */
  refreshUrl?: string | URL
  /** Milliseconds between renewals: 20 minutes, but never more than a third of a token's life. */
  refreshEvery?: number
  network?: Network
  fetch?: typeof fetch
}

export interface AddOptions {
  /** Besides `filename` and `filetype`, which are the file's unless they are given. An empty text leaves one out. */
  metadata?: Record<string, string>
  /** False begins anew also where the same file, with the same metadata, was left unfinished. */
  resume?: boolean
  /** False leaves it paused. */
  start?: boolean
}

/** An upload that was left unfinished, and can be gone on with once the user has chosen the file again. */
export type Resumable = Pick<
  UploadRecord,
  'id' | 'url' | 'name' | 'size' | 'metadata' | 'offset' | 'created' | 'updated'
>

export interface ManagerEvents {
  added: [upload: Upload]
  state: [upload: Upload, previous: UploadState]
  progress: [upload: Upload]
  /** Another page was at an upload when `resumable` was called, and is no longer. */
  released: [id: string]
  /** Unfinished uploads cannot be kept, or what was cancelled could not be removed; uploads go on. */
  warning: [problem: unknown]
}

type Optional = 'getAccessToken' | 'digest' | 'onDuplicate' | 'shouldRetry'
type ResolvedOptions = Required<
  Omit<UploadManagerOptions, Optional | 'endpoint' | 'refreshUrl' | 'store' | 'network' | 'fetch'>
> &
  Pick<UploadManagerOptions, Optional> & { endpoint: string; refreshUrl: string }

const MINUTE = 60_000

/** Uploads files to one server. */
export class UploadManager extends Emitter<ManagerEvents> {
  readonly #shared: Shared
  readonly #holding: Holding = browserHolding()
  readonly #uploads: Upload[] = []
  readonly #closing = new AbortController()
  /** Uploads of other pages whose release is waited for. */
  readonly #watched = new Set<string>()
  /** The last call of `add`, settled. */
  #adding: Promise<unknown> = Promise.resolve()

  constructor(options: UploadManagerOptions) {
    super()
    const { store = defaultStore(), network = browserNetwork(), fetch: given } = options
    const resolved = withDefaults(options)
    this.#shared = {
      options: resolved,
      network,
      store,
      slots: new Slots(resolved.concurrency),
      digesting: new Slots(1),
      closed: this.#closing.signal,
      credentials: (onChange) =>
        new Credentials({
          getAccessToken: resolved.getAccessToken,
          refreshUrl: resolved.refreshUrl,
          refreshEvery: resolved.refreshEvery,
          fetch: given ?? ((...request) => fetch(...request)),
          now: Date.now,
          onChange,
        }),
      warn: (problem) => this.emit('warning', problem),
    }
    void this.#removeCancelled()
  }

  /** Those of this page, oldest first. */
  get uploads(): readonly Upload[] {
    return this.#uploads
  }

  /**
   * Uploads a file. If the same file was left unfinished, with the same metadata, it goes on there, unless the server has that no
   * more; if it is being uploaded, that upload is returned. Throws an UploadError: `source` if the file cannot be read,
   * `elsewhere` if another tab is at it.
   */
  async add(file: Blob | Source, options: AddOptions = {}): Promise<Upload> {
    const source = sourceOf(file)
    const metadata = metadataOf(source, options.metadata)
    const fingerprint = await fingerprintOf(source)
    // One after the other: of two calls with one file, the second finds the upload of the first.
    const added = this.#adding.then(() => this.#findOrAdd(source, fingerprint, metadata, options))
    this.#adding = added.catch(() => {})
    return added
  }

  async #findOrAdd(
    source: Source,
    fingerprint: string,
    metadata: Record<string, string>,
    options: AddOptions,
  ): Promise<Upload> {
    const { key } = digestSettings(this.#shared.options.digest)
    const isSame = (other: { fingerprint: string; metadata: Readonly<Record<string, string>> }) =>
      other.fingerprint === fingerprint && sameMetadata(other.metadata, metadata, key)
    let record: UploadRecord | undefined
    if (options.resume !== false) {
      const here = this.#uploads.find((upload) => isSame(upload) && !isOver(upload))
      if (here) {
        if (options.start !== false) again(here)
        return here
      }
      record = (await this.#records()).find((each) => !each.cancelled && isSame(each))
    }
    return this.#add(record, { source, fingerprint, metadata, anew: true }, options.start !== false)
  }

  /** What earlier pages, or runs, left unfinished and nobody is at; the latest first. `released` tells when there is more. */
  async resumable(): Promise<Resumable[]> {
    const held = await this.#holding.taken()
    const unfinished = (await this.#records()).filter(
      ({ id, cancelled }) => !cancelled && !this.#has(id),
    )
    for (const { id } of unfinished) if (held.has(id)) this.#watch(id)
    return unfinished
      .filter(({ id }) => !held.has(id))
      .sort((one, other) => other.updated - one.updated)
      .map(({ id, url, name, size, metadata, offset, created, updated }) => {
        return { id, url, name, size, metadata, offset, created, updated }
      })
  }

  /**
   * Goes on with one of `resumable`, with the file that the user has chosen again. Throws an UploadError: `source` if it is
   * another file or there is no such upload, `elsewhere` if another tab is at it.
   */
  async resume(id: string, file: Blob | Source): Promise<Upload> {
    const source = sourceOf(file)
    const record = (await this.#records()).find((each) => each.id === id && !each.cancelled)
    if (!record) throw new UploadError('source', 'there is no such unfinished upload')
    const fingerprint = await fingerprintOf(source)
    if (fingerprint !== record.fingerprint) {
      throw new UploadError('source', 'this is not the file that was being uploaded')
    }
    const { metadata } = record
    return this.#add(record, { source, fingerprint, metadata, anew: false }, true)
  }

  /** Removes one of `resumable` here and at the server. Resolves as `Upload.cancel` does. */
  async discard(id: string): Promise<boolean> {
    const record = (await this.#records()).find((each) => each.id === id)
    if (!record) return true
    const release = await this.#hold(id)
    await this.#shared.store.put({ ...record, cancelled: true })
    return this.#remove(record, release)
  }

  /** Takes an upload off the list. One that is not over is paused, and can be gone on with later. */
  async remove(upload: Upload): Promise<void> {
    const index = this.#uploads.indexOf(upload)
    if (index < 0) return
    this.#uploads.splice(index, 1)
    await upload.close()
  }

  /** Pauses all. */
  pause(): void {
    for (const upload of this.#uploads) upload.pause()
  }

  /** Ends all that goes on here. Unfinished uploads can be gone on with by another manager. */
  async close(): Promise<void> {
    this.#closing.abort()
    await Promise.all(this.#uploads.map((upload) => upload.close()))
  }

  #has(id: string): boolean {
    return this.#uploads.some((upload) => upload.id === id && !isOver(upload))
  }

  #watch(id: string): void {
    if (this.#watched.has(id)) return
    this.#watched.add(id)
    void this.#holding
      .freed(id, this.#closing.signal)
      .finally(() => this.#watched.delete(id))
      .then(() => this.emit('released', id))
      .catch(() => {}) // The manager was closed.
  }

  async #records(): Promise<UploadRecord[]> {
    const { options, store } = this.#shared
    try {
      return (await store.list()).filter(
        ({ namespace, endpoint }) =>
          namespace === options.namespace && endpoint === options.endpoint,
      )
    } catch (problem) {
      this.#shared.warn(problem)
      return []
    }
  }

  async #hold(id: string): Promise<() => void> {
    const release = await this.#holding.take(id)
    if (!release) throw new UploadError('elsewhere', 'another tab is uploading this')
    return release
  }

  async #add(
    record: UploadRecord | undefined,
    what: Pick<Beginning, 'source' | 'fingerprint' | 'metadata' | 'anew'>,
    start: boolean,
  ): Promise<Upload> {
    const id = record?.id ?? newId()
    const release = await this.#hold(id)
    const upload = new Upload(this.#shared, { id, record, release, ...what })
    upload.on('state', (...values) => this.emit('state', ...values))
    upload.on('progress', (...values) => this.emit('progress', ...values))
    this.#uploads.push(upload)
    this.emit('added', upload)
    if (start) upload.resume()
    return upload
  }

  /** What was cancelled while the server could not be reached. */
  async #removeCancelled(): Promise<void> {
    for (const record of await this.#records()) {
      if (!record.cancelled) continue
      const release = await this.#holding.take(record.id)
      if (release)
        await this.#remove(record, release).catch((problem) => this.#shared.warn(problem))
    }
  }

  async #remove(record: UploadRecord, release: () => void): Promise<boolean> {
    const { options, network, store, closed } = this.#shared
    const credentials = this.#shared.credentials(() => {})
    credentials.uploadId = uploadIdOf(record.url)
    if (record.token) credentials.restore({ value: record.token, expires: record.tokenExpires })
    try {
      const removed = await removeUpload({
        url: record.url,
        credentials,
        headers: options.headers,
        network,
        retry: options.retry,
        signal: closed,
      })
      await store.delete(record.id)
      return removed
    } catch (problem) {
      if (problem instanceof Stopped) return false
      throw problem
    } finally {
      release()
    }
  }
}

function withDefaults(options: UploadManagerOptions): ResolvedOptions {
  const base = typeof location === 'undefined' ? undefined : location.href
  const endpoint = new URL(options.endpoint, base).href
  return {
    endpoint,
    refreshUrl: new URL(options.refreshUrl ?? '/auth/refresh-upload-token', endpoint).href,
    refreshEvery: options.refreshEvery ?? 20 * MINUTE,
    concurrency: options.concurrency ?? 3,
    namespace: options.namespace ?? '',
    chunkSize: options.chunkSize ?? Number.POSITIVE_INFINITY,
    protocol: options.protocol ?? 'tus-v1',
    headers: options.headers ?? {},
    retry: options.retry ?? { min: 1_000, max: MINUTE },
    stallTimeout: options.stallTimeout ?? 2 * MINUTE,
    restartWhenGone: options.restartWhenGone ?? false,
    getAccessToken: options.getAccessToken,
    digest: options.digest,
    onDuplicate: options.onDuplicate,
    shouldRetry: options.shouldRetry,
  } as ResolvedOptions
}

function metadataOf(source: Source, given: Record<string, string> = {}): Record<string, string> {
  const all = { filename: source.name, filetype: source.type, ...given }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== ''))
}

function sameMetadata(
  one: Readonly<Record<string, string>>,
  other: Readonly<Record<string, string>>,
  digestKey: string,
): boolean {
  const keys = new Set([...Object.keys(one), ...Object.keys(other)])
  // Of what is added again, nobody has computed a digest yet.
  keys.delete(digestKey)
  return [...keys].every((key) => one[key] === other[key])
}

function isOver({ state }: Upload): boolean {
  return state === 'completed' || state === 'cancelled'
}

/** Goes on with one that stands still; what the server has no more begins anew. */
function again(upload: Upload): void {
  if (upload.state === 'failed' && upload.error?.kind === 'gone') upload.restart()
  else upload.resume()
}

/** No secret, and known to this browser alone. `crypto.randomUUID` is there on secure origins alone. */
function newId(): string {
  return `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`
}
