// The life of one upload: attempts, and what is decided between them. How many run at a time, and where they are kept, is the
// manager's.

import { Attempt, AttemptFailed, Offline, type Protocol } from './attempt.js'
import { type Credentials, Finished, RenewalFailed } from './credentials.js'
import { type DigestOptions, digestOf } from './digest.js'
import { type Duplicate, judge, UploadError, type Verdict } from './errors.js'
import { Emitter } from './events.js'
import { failureOf, removeUpload } from './removal.js'
import { checked, checkReadable, type Source } from './source.js'
import { Speed } from './speed.js'
import type { UploadRecord, UploadStore } from './store.js'
import {
  type Backoff,
  backoff,
  type Network,
  nextOnline,
  pause,
  type Slots,
  Stopped,
  unlessStopped,
} from './waiting.js'

/**
 * `queued`: others come first. `waiting`: for the network, or until it is tried again. `asking`: for the answer about a
 * duplicate. `failed`: see `error`; it may be resumed or started anew.
 */
export type UploadState =
  | 'queued'
  | 'uploading'
  | 'waiting'
  | 'asking'
  | 'paused'
  | 'completed'
  | 'failed'
  | 'cancelled'

export interface Progress {
  /** Bytes sent, of which the last may not have arrived. */
  sent: number
  /** Bytes. */
  total: number
  /** Smoothed; null while nothing can be said, and while nothing is sent. */
  bytesPerSecond: number | null
  remainingSeconds: number | null
}

export interface UploadEvents {
  state: [upload: Upload, previous: UploadState]
  progress: [upload: Upload]
}

/** `resume`: go on with the earlier upload. `force`: upload it all the same. `give-up`: leave it. */
export type DuplicateAnswer = 'resume' | 'force' | 'give-up'

/** What decides how an upload goes. */
export interface UploadOptions {
  endpoint: string
  /** Keeps apart what several users of one browser have begun, for instance the user's id. */
  namespace: string
  /** Bytes of a request at most. Without it an upload is one request as long as nothing goes wrong. */
  chunkSize: number
  /** What is spoken: tus, or a draft of the IETF's Resumable Uploads for HTTP. Servers older than 0.2 know tus only. */
  protocol: Protocol
  /** Sent with every request to the collection and its uploads. */
  headers: Record<string, string>
  /** Milliseconds between attempts: from 1 s, doubled up to 60 s. */
  retry: Backoff
  /** Milliseconds without a byte or an answer after which a connection counts as dead: 2 minutes; 0 for never. */
  stallTimeout: number
  /** Begin anew where the server has an upload no more (404, 410). By default it fails, and `restart` begins anew. */
  restartWhenGone: boolean
  /**
   * Sends a SHA-256 of the content as metadata, by which the server can tell duplicates. It is computed before the creation, of
   * one file at a time, in the state `queued`.
   */
  digest?: boolean | DigestOptions
  /** Asks the user about a duplicate. Without it they are left. */
  onDuplicate?: (duplicate: Duplicate, upload: Upload) => DuplicateAnswer | Promise<DuplicateAnswer>
  /** False gives an upload up that would otherwise be tried again. failures: how often in a row nothing more arrived. */
  shouldRetry?: (error: UploadError, upload: Upload, failures: number) => boolean
}

/** What the uploads of a manager have in common. */
export interface Shared {
  readonly options: UploadOptions
  readonly network: Network
  readonly slots: Slots
  /** One file at a time is read for its digest. */
  readonly digesting: Slots
  readonly store: UploadStore
  /** Aborted when the manager is closed. */
  readonly closed: AbortSignal
  credentials(onChange: () => void): Credentials
  warn(problem: unknown): void
}

/** What an upload is made of. */
export interface Beginning {
  id: string
  source: Source
  fingerprint: string
  metadata: Record<string, string>
  /** Of one that was begun before. */
  record: UploadRecord | undefined
  /** Lets other tabs have it. */
  release: () => void
  /** Begin anew if the server does not have that any more. */
  anew: boolean
}

const PROGRESS_EVERY = 100
const SAVE_EVERY = 1_000
/** How long a store may take before it is gone on without it. */
const STORE_PATIENCE = 2_000
const MOST_REFUSALS = 3
const MOST_RESTARTS = 3

/** One upload. Made by an UploadManager. */
export class Upload extends Emitter<UploadEvents> {
  /** The manager's name for it. */
  readonly id: string
  readonly name: string
  /** Bytes. */
  readonly size: number
  readonly fingerprint: string

  readonly #shared: Shared
  readonly #source: Source
  readonly #credentials: Credentials
  readonly #created: number
  readonly #speed = new Speed()
  #release: () => void
  #state: UploadState = 'paused'
  #waitingFor: 'network' | 'retry' | null = null
  #retryAt: number | null = null
  #error: UploadError | null = null
  #metadata: Record<string, string>
  #url: string | null = null
  #sent = 0
  #accepted = 0
  #failures = 0
  #refusals = 0
  #restarts = 0
  #force = false
  #lost = false
  #stop = new AbortController()
  #running: Promise<void> = Promise.resolve()
  #saved: Promise<void> = Promise.resolve()
  #savedAt = 0
  #toldAt = 0
  #cancelling: Promise<boolean> | null = null
  /** Gives back the place among those that run at a time. */
  #room: (() => void) | null = null
  #forgotten = false
  /** Whether it begins anew if the server has it no more, without being told: nothing of it was seen on this page yet. */
  #anew: boolean

  /** @internal */
  constructor(shared: Shared, beginning: Beginning) {
    super()
    const { id, source, fingerprint, metadata, record, release, anew } = beginning
    this.#anew = anew
    this.#shared = shared
    this.#source = source
    this.#release = release
    this.id = id
    this.name = source.name
    this.size = source.size
    this.#metadata = metadata
    this.fingerprint = fingerprint
    this.#created = record?.created ?? Date.now()
    this.#credentials = shared.credentials(() => this.#save())
    if (record) {
      this.#setUrl(record.url)
      this.#sent = record.offset
      this.#accepted = record.offset
      if (record.token) {
        this.#credentials.restore({ value: record.token, expires: record.tokenExpires })
      }
    }
  }

  /** With the digest of the content, once it is known. */
  get metadata(): Readonly<Record<string, string>> {
    return this.#metadata
  }

  get state(): UploadState {
    return this.#state
  }

  /** What is waited for in the state `waiting`. */
  get waitingFor(): 'network' | 'retry' | null {
    return this.#waitingFor
  }

  /** When it is tried again, in milliseconds since the epoch, if that is what is waited for. */
  get retryAt(): number | null {
    return this.#retryAt
  }

  /** Why it failed; in the state `waiting`, why it has to be tried again. */
  get error(): UploadError | null {
    return this.#error
  }

  /** Where it is at the server, once that is known. */
  get url(): string | null {
    return this.#url
  }

  get progress(): Progress {
    const rate = this.#state === 'uploading' ? this.#speed.rate : null
    return {
      sent: this.#sent,
      total: this.size,
      bytesPerSecond: rate,
      remainingSeconds: rate ? (this.size - this.#sent) / rate : null,
    }
  }

  /** Stops sending; what arrived is kept. Nothing in a state from which it does not go on by itself. */
  pause(): void {
    if (!this.#isActive()) return
    this.#stop.abort()
    this.#set('paused')
  }

  /** Goes on after `pause`, or tries again after a failure. */
  resume(): void {
    if (this.#state !== 'paused' && this.#state !== 'failed') return
    this.#begin()
  }

  /** Begins from nothing, at a new URL, after a failure or while it is paused. What the server has is left to expire. */
  restart(): void {
    if (this.#state !== 'paused' && this.#state !== 'failed') return
    this.#startOver()
    this.#begin()
  }

  /**
   * Ends it and removes it at the server, also later if that cannot be reached now. Resolves to whether there is nothing left
   * of it; false if the server would not remove it, or it was complete already.
   */
  cancel(): Promise<boolean> {
    if (this.#state === 'completed') return Promise.resolve(false)
    this.#cancelling ??= this.#cancel()
    return this.#cancelling
  }

  /** Resolves when it is complete. Throws its UploadError when it fails, or is cancelled (kind `rejected`). */
  finished(): Promise<this> {
    return new Promise((resolve, reject) => {
      const look = (): boolean => {
        if (this.#state === 'completed') resolve(this)
        else if (this.#state === 'failed') reject(this.#error)
        else if (this.#state === 'cancelled')
          reject(new UploadError('rejected', 'it was cancelled'))
        else return false
        return true
      }
      if (look()) return
      const end = this.on('state', () => {
        if (look()) end()
      })
    })
  }

  /** @internal Pauses it and lets other tabs have it. */
  async close(): Promise<void> {
    this.pause()
    await this.#running
    await this.#saved
    this.#release()
  }

  #isActive(): boolean {
    return ['queued', 'uploading', 'waiting', 'asking'].includes(this.#state)
  }

  #set(state: UploadState, waitingFor: 'network' | 'retry' | null = null): void {
    const previous = this.#state
    if (previous === state && this.#waitingFor === waitingFor) return
    this.#state = state
    this.#waitingFor = waitingFor
    if (waitingFor !== 'retry') this.#retryAt = null
    this.emit('state', this, previous)
    if (state !== 'uploading') this.#leave()
  }

  #begin(): void {
    const stop = new AbortController()
    this.#stop = stop
    this.#error = null
    this.#failures = this.#refusals = this.#restarts = 0
    this.#set('queued')
    // One after the other: the last attempt may still wait for the answer to its creation.
    this.#running = this.#running.then(() => this.#run(stop.signal))
  }

  /** Until it is complete, has failed, or is stopped. */
  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#online(signal)
        await this.#identify(signal)
        await this.#inTurn(signal)
        // Whoever pauses or cancels at the last moment has it paused, or removed.
        if (!signal.aborted) await this.#complete()
        return
      } catch (problem) {
        if (signal.aborted) return
        try {
          await this.#after(problem, signal)
        } catch (final) {
          if (signal.aborted) return
          if (final instanceof Finished) return await this.#complete()
          return this.#fail(final)
        }
      }
    }
  }

  async #online(signal: AbortSignal): Promise<void> {
    const { network } = this.#shared
    if (network.online) return
    this.#set('waiting', 'network')
    const { came, stop } = nextOnline(network)
    try {
      await unlessStopped(came, signal)
    } finally {
      stop()
    }
  }

  /** Adds the digest to the metadata of one that is still to be created. */
  async #identify(signal: AbortSignal): Promise<void> {
    const { options, digesting } = this.#shared
    const { key, maxSize } = digestSettings(options.digest)
    if (!key || this.#url !== null || key in this.#metadata || this.size > maxSize) return
    this.#set('queued')
    const leave = await digesting.take(0, signal)
    try {
      const digest = await checked(digestOf(this.#source, signal))
      this.#metadata = { ...this.#metadata, [key]: digest }
    } finally {
      leave()
    }
  }

  /** One attempt, when there is room for it, which is held until the state is another. What was begun comes first. */
  async #inTurn(signal: AbortSignal): Promise<void> {
    const { slots } = this.#shared
    if (!this.#room) {
      if (!slots.free) this.#set('queued')
      this.#room = await slots.take(this.#url ? 1 : 0, signal)
    }
    if (signal.aborted) {
      this.#leave()
      throw new Stopped()
    }
    this.#set('uploading')
    await checkReadable(this.#source)
    await this.#attempt(signal)
  }

  #leave(): void {
    this.#room?.()
    this.#room = null
  }

  async #attempt(signal: AbortSignal): Promise<void> {
    const { options, network } = this.#shared
    const attempt = new Attempt({
      source: this.#source,
      url: this.#url,
      endpoint: options.endpoint,
      metadata: { ...this.metadata },
      headers: { ...options.headers, ...(this.#force ? { 'Upload-Force': 'true' } : {}) },
      chunkSize: options.chunkSize,
      protocol: options.protocol,
      stallTimeout: options.stallTimeout,
      network,
      credentials: this.#credentials,
      lost: this.#lost,
      kept: () => this.#kept(),
      onUrl: (url) => {
        this.#setUrl(url)
        this.#save()
      },
      onBegin: (offset) => this.#beganAt(offset),
      onSent: (bytes) => this.#tell(bytes),
      onArrived: (offset) => this.#arrived(offset),
    })
    try {
      await attempt.run(signal)
    } finally {
      this.#lost = attempt.lost
    }
  }

  /** The server has so many bytes: the first word of an attempt on it. */
  #beganAt(offset: number): void {
    if (offset > this.#accepted) this.#failures = this.#refusals = 0
    this.#accepted = offset
    this.#anew = false
    this.#speed.begin(offset, performance.now())
  }

  #arrived(offset: number): void {
    this.#accepted = offset
    this.#failures = this.#refusals = this.#restarts = 0
    if (offset < this.size && Date.now() - this.#savedAt > SAVE_EVERY) this.#save()
  }

  #tell(sent: number): void {
    this.#sent = sent
    const now = performance.now()
    this.#speed.add(sent, now)
    if (now - this.#toldAt < PROGRESS_EVERY && sent < this.size) return
    this.#toldAt = now
    this.emit('progress', this)
  }

  /** Waits for, or changes, what has to be before the next attempt. Throws what is final. */
  async #after(problem: unknown, signal: AbortSignal): Promise<void> {
    if (problem instanceof Offline) return
    if (problem instanceof UploadError || problem instanceof Finished) throw problem
    const renewal = problem instanceof RenewalFailed
    const failed = problem instanceof AttemptFailed
    const failure = failed ? problem.failure : failureOf(problem)
    const verdict = judge(failure)
    if (renewal && verdict.do === 'authenticate') throw verdict.error
    switch (verdict.do) {
      case 'retry':
        return this.#again(verdict, signal)
      case 'authenticate':
        return this.#authenticate(verdict.error, failure.method, signal)
      case 'ask':
        return this.#ask(verdict, failed && problem.lostBefore, signal)
      case 'restart':
        this.#restarts += 1
        if (!(this.#anew || this.#shared.options.restartWhenGone)) throw verdict.error
        if (this.#restarts > MOST_RESTARTS) throw verdict.error
        return this.#startOver()
      case 'fail':
        throw verdict.error
    }
  }

  async #again(verdict: Pick<Verdict & { do: 'retry' }, 'error' | 'after'>, signal: AbortSignal) {
    const { options, network } = this.#shared
    this.#failures += 1
    if (options.shouldRetry && !options.shouldRetry(verdict.error, this, this.#failures)) {
      throw verdict.error
    }
    if (!network.online) return
    const wait = Math.max(verdict.after ?? 0, backoff(this.#failures, options.retry))
    this.#error = verdict.error
    this.#retryAt = Date.now() + wait
    this.#set('waiting', 'retry')
    const { came, stop } = nextOnline(network)
    try {
      await pause(wait, signal, came)
    } finally {
      stop()
    }
    this.#error = null
  }

  async #authenticate(error: UploadError, method: string, signal: AbortSignal): Promise<void> {
    this.#refusals += 1
    if (this.#refusals > MOST_REFUSALS) throw error
    try {
      await unlessStopped(this.#credentials.replace(method), signal)
    } catch (problem) {
      return this.#after(problem, signal)
    }
    // A good token that does not count is the server's own trouble, of which it may need a moment to get over.
    if (this.#refusals > 1) await pause(backoff(this.#refusals, this.#shared.options.retry), signal)
  }

  async #ask(
    { error, duplicate }: Verdict & { do: 'ask' },
    lost: boolean,
    signal: AbortSignal,
  ): Promise<void> {
    // Made by a creation of ours whose answer was lost: nobody has to be asked about that.
    const own = lost && duplicate.canResume && duplicate.offset === 0
    const answer = own ? 'resume' : await this.#answer(duplicate, signal)
    if (answer === 'resume' && duplicate.location) {
      this.#setUrl(new URL(duplicate.location, this.#shared.options.endpoint).href)
      this.#save()
      return this.#getToken(signal)
    }
    if (answer !== 'force') throw error
    this.#force = true
  }

  async #answer(duplicate: Duplicate, signal: AbortSignal) {
    const { onDuplicate } = this.#shared.options
    if (!onDuplicate) return 'give-up'
    this.#set('asking')
    return unlessStopped(Promise.resolve(onDuplicate(duplicate, this)), signal)
  }

  /** An upload token for what another creation made. The access token does as well, for as long as it is good. */
  async #getToken(signal: AbortSignal): Promise<void> {
    try {
      await unlessStopped(this.#credentials.renew(), signal)
    } catch (problem) {
      if (problem instanceof Stopped || problem instanceof Finished) throw problem
    }
  }

  #setUrl(url: string | null): void {
    this.#url = url
    this.#forgotten = false
    this.#credentials.uploadId = url === null ? null : uploadIdOf(url)
  }

  #startOver(): void {
    this.#forget()
    this.#setUrl(null)
    this.#sent = this.#accepted = 0
    this.#force = false
    this.#credentials.forget()
  }

  async #complete(): Promise<void> {
    if (await this.#source.isChanged?.()) return this.#spoiled()
    this.#sent = this.#accepted = this.size
    this.#credentials.stop()
    this.#forget()
    await this.#kept()
    if (this.#state === 'cancelled') return
    this.#release()
    this.emit('progress', this)
    this.#set('completed')
  }

  /** What arrived may be of two versions of the file. It is removed, if that is allowed, as it looks like a good one. */
  async #spoiled(): Promise<void> {
    const url = this.#url
    this.#forget()
    const removed =
      url === null || (await this.#removeFrom(url, this.#stop.signal).catch(() => false))
    if (removed) this.#startOver()
    this.#fail(new UploadError('source', 'the file was changed while it was sent'))
  }

  #removeFrom(url: string, signal: AbortSignal): Promise<boolean> {
    const { options, network } = this.#shared
    return removeUpload({
      url,
      credentials: this.#credentials,
      headers: options.headers,
      retry: options.retry,
      network,
      signal,
    })
  }

  #fail(problem: unknown): void {
    const cause = problem instanceof Error ? problem.message : String(problem)
    this.#error =
      problem instanceof UploadError
        ? problem
        : new UploadError('rejected', cause, { cause: problem })
    if (this.#error.kind === 'gone') this.#forget()
    this.#set('failed')
  }

  async #cancel(): Promise<boolean> {
    this.#stop.abort()
    this.#set('cancelled')
    // So that a page that goes now does not come back to it, but removes it.
    this.#save()
    await this.#running
    if (this.#url === null) {
      this.#release()
      return true
    }
    try {
      const removed = await this.#removeFrom(this.#url, this.#shared.closed)
      this.#forget()
      await this.#saved
      return removed
    } catch (problem) {
      if (problem instanceof Stopped) return false
      throw problem
    } finally {
      this.#release()
    }
  }

  #save(): void {
    const url = this.#url
    if (url === null || this.#forgotten) return
    this.#savedAt = Date.now()
    const token = this.#credentials.token
    const { options, store } = this.#shared
    const record: UploadRecord = {
      id: this.id,
      namespace: options.namespace,
      endpoint: options.endpoint,
      url,
      fingerprint: this.fingerprint,
      name: this.name,
      size: this.size,
      metadata: { ...this.metadata },
      offset: this.#accepted,
      token: token?.value ?? null,
      tokenExpires: token?.expires ?? null,
      created: this.#created,
      updated: this.#savedAt,
      cancelled: this.#state === 'cancelled',
    }
    this.#store(() => store.put(record))
  }

  #forget(): void {
    this.#forgotten = true
    this.#store(() => this.#shared.store.delete(this.id))
  }

  /** What was to be kept is kept; or the store takes too long, and is gone on without. */
  #kept(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, STORE_PATIENCE)
      void this.#saved.then(() => {
        clearTimeout(timer)
        resolve()
      })
    })
  }

  /** In their order. An upload goes on also if it cannot be kept; then a reload begins anew. */
  #store(change: () => Promise<void>): void {
    this.#saved = this.#saved.then(change).catch((problem: unknown) => this.#shared.warn(problem))
  }
}

const MIB = 2 ** 20

/** key: empty where no digest is wanted. maxSize: bytes. */
export function digestSettings(option: boolean | DigestOptions | undefined): {
  key: string
  maxSize: number
} {
  if (!option) return { key: '', maxSize: 0 }
  const { key = 'sha256', maxSize = 256 * MIB } = option === true ? {} : option
  return { key, maxSize }
}

/** The server's id of an upload: the last part of its URL. */
export function uploadIdOf(url: string): string {
  const path = new URL(url, 'http://localhost').pathname.replace(/\/+$/, '')
  return decodeURIComponent(path.slice(path.lastIndexOf('/') + 1))
}
