// One attempt at an upload: a tus-js-client upload that never retries. It ends when all is sent, when something goes wrong, when
// it is stopped, or when nothing moves any more. What follows from that is decided in `upload.ts`.

import { type HttpRequest, type HttpResponse, Upload as TusUpload } from 'tus-js-client'
import type { Credentials } from './credentials.js'
import type { Failure } from './errors.js'
import { failureOf } from './removal.js'
import type { Source } from './source.js'
import { type Network, Stopped } from './waiting.js'

/** It was broken off because there is no network; it does not count. */
export class Offline extends Error {}

/** The server, or the way to it, ended it. */
export class AttemptFailed extends Error {
  constructor(
    readonly failure: Failure,
    /** The answer to a creation before this one was lost, so that a duplicate may be our own. */
    readonly lostBefore: boolean,
  ) {
    super('the attempt failed')
  }
}

/** tus, or an iteration of the IETF's draft, by the names that tus-js-client gives them. */
export type Protocol = 'tus-v1' | 'ietf-draft-03' | 'ietf-draft-05'

export interface AttemptOptions {
  source: Source
  /** Null to create it. */
  url: string | null
  endpoint: string
  metadata: Record<string, string>
  headers: Record<string, string>
  /** Bytes. */
  chunkSize: number
  protocol: Protocol
  /** Milliseconds; 0 for never. */
  stallTimeout: number
  network: Network
  credentials: Credentials
  /** The answer to an earlier creation was lost. */
  lost: boolean
  /** Resolves when what a reload needs is kept. */
  kept(): Promise<void>
  /** The server has it, at this URL. */
  onUrl(url: string): void
  /** The server has so many bytes: its first word on it. */
  onBegin(offset: number): void
  /** So many bytes were sent, of which the last may not have arrived. */
  onSent(bytes: number): void
  /** The server has so many bytes. */
  onArrived(offset: number): void
}

/** How long a creation is waited for when the upload is paused or cancelled in the meantime, as its answer has the URL. */
const CREATION_PATIENCE = 5_000

export class Attempt {
  /** Whether a creation was sent whose answer has not come (any more). */
  lost: boolean
  readonly #options: AttemptOptions
  readonly #tus: TusUpload
  #creating = false
  #stopping = false
  #begun = false
  #ended = false
  /** What kept a request from being sent. */
  #unsent: unknown
  #stall: ReturnType<typeof setTimeout> | undefined
  #patience: ReturnType<typeof setTimeout> | undefined
  #settle: { resolve: () => void; reject: (problem: unknown) => void } = {
    resolve: () => {},
    reject: () => {},
  }

  constructor(options: AttemptOptions) {
    const { source, url, endpoint, metadata, headers, chunkSize, protocol } = options
    this.#options = options
    this.lost = options.lost
    this.#tus = new TusUpload(source.data as File, {
      // With both, tus-js-client would begin anew by itself where the server refuses a HEAD.
      endpoint: url ? null : endpoint,
      uploadUrl: url,
      metadata,
      headers,
      chunkSize,
      retryDelays: null,
      storeFingerprintForResuming: false,
      fingerprint: async () => '',
      ...(source.reader ? { fileReader: source.reader } : {}),
      // Its types do not know of the option. It completes an empty file in tus only.
      ...({ protocol: source.size === 0 ? 'tus-v1' : protocol } as object),
      onBeforeRequest: (request) => this.#before(request),
      onAfterResponse: (request, response) => this.#answered(request, response),
      onUploadUrlAvailable: () => this.#found(),
      onProgress: (sent) => this.#moved(sent),
      onChunkComplete: (_size, accepted) => options.onArrived(accepted),
      onSuccess: () => this.#end(this.#settle.resolve),
      onError: (error) => this.#failed(error),
    })
  }

  /**
   * Sends until all is there. Throws Offline, AttemptFailed, Stopped when the signal is aborted, and what the credentials throw.
   */
  async run(signal: AbortSignal): Promise<void> {
    const { network } = this.#options
    if (signal.aborted) throw new Stopped()
    if (!network.online) throw new Offline()
    const stop = () => this.#stop()
    signal.addEventListener('abort', stop)
    const unsubscribe = network.onChange(() => {
      if (!network.online) this.#fail(new Offline())
    })
    try {
      await new Promise<void>((resolve, reject) => {
        this.#settle = { resolve, reject }
        this.#alive()
        this.#tus.start()
      })
    } finally {
      signal.removeEventListener('abort', stop)
      unsubscribe()
    }
  }

  #end(settle: () => void): void {
    if (this.#ended) return
    this.#ended = true
    clearTimeout(this.#stall)
    clearTimeout(this.#patience)
    this.#options.credentials.stop()
    void this.#tus.abort()
    this.#options.source.release?.()
    settle()
  }

  #fail(problem: unknown): void {
    this.#end(() => this.#settle.reject(problem))
  }

  #stop(): void {
    this.#stopping = true
    if (!this.#creating) this.#fail(new Stopped())
    else this.#patience = setTimeout(() => this.#fail(new Stopped()), CREATION_PATIENCE)
  }

  /** Something moved: it is waited for again. */
  #alive(): void {
    const { stallTimeout, lost } = this.#options
    clearTimeout(this.#stall)
    if (this.#ended || stallTimeout === 0) return
    const problem = new Error(`nothing moved for ${stallTimeout} ms`)
    this.#stall = setTimeout(
      () => this.#fail(new AttemptFailed(failureOf(problem), lost)),
      stallTimeout,
    )
  }

  async #before(request: HttpRequest): Promise<void> {
    const { credentials, kept } = this.#options
    const method = request.getMethod()
    this.#alive()
    try {
      // No byte is sent to a place that a reload would not find again.
      if (method === 'PATCH') await kept()
      const value = await credentials.authorization(method)
      if (value) request.setHeader('Authorization', value)
    } catch (problem) {
      this.#unsent = problem
      throw problem
    }
    // tus-js-client would send it although it was aborted in the meantime.
    if (this.#ended || this.#stopping) throw new Stopped()
    if (method === 'POST') this.#creating = this.lost = true
  }

  #answered(request: HttpRequest, response: HttpResponse): void {
    this.#alive()
    if (request.getMethod() !== 'POST') return
    const status = response.getStatus()
    // Behind a gateway that gave up, the server may have made it all the same.
    this.lost = status >= 500
    if (status === 201) {
      this.#options.credentials.adoptFrom({ header: (name) => response.getHeader(name) })
    }
  }

  #found(): void {
    this.#creating = this.lost = false
    this.#options.onUrl(this.#tus.url ?? '')
    this.#options.credentials.begin()
    if (this.#stopping) this.#fail(new Stopped())
  }

  #moved(sent: number): void {
    this.#alive()
    if (this.#ended) return
    if (!this.#begun) this.#options.onBegin(sent)
    this.#begun = true
    this.#options.onSent(sent)
  }

  #failed(error: unknown): void {
    this.#creating = false
    if (this.#stopping) this.#fail(new Stopped())
    else this.#fail(this.#unsent ?? new AttemptFailed(failureOf(error), this.#options.lost))
  }
}
