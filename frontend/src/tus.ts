// Options for tus-js-client and for Uppy's own Tus plugin, for pages that have one of these and no UploadManager: tokens, and
// the question about duplicates. They lie in the HTTP stack, since a retry comes too late: tus-js-client begins a new upload as
// soon as a HEAD is refused, for whatever reason.

import {
  type DetailedError,
  defaultOptions,
  type HttpRequest,
  type HttpResponse,
  type HttpStack,
} from 'tus-js-client'
import { Credentials, Finished, type GetAccessToken } from './credentials.js'
import { type Duplicate, errorOf, type Failure, judge, UploadError } from './errors.js'
import { failureOf } from './removal.js'
import { type DuplicateAnswer, uploadIdOf } from './upload.js'
import { browserNetwork, type Network, nextOnline } from './waiting.js'

export interface TusOptionsInput {
  /** The URL of the server's collection. */
  endpoint: string | URL
  /** Not needed where the server asks nobody for tokens. */
  getAccessToken?: GetAccessToken
  /** Asks the user about a duplicate, whose metadata are given. Without it they are left. */
  onDuplicate?: (
    duplicate: Duplicate,
    metadata: Record<string, string>,
  ) => DuplicateAnswer | Promise<DuplicateAnswer>
  /** Where upload tokens are renewed: `/auth/refresh-upload-token` at the endpoint's origin. */
  refreshUrl?: string | URL
  /** Milliseconds between attempts as long as nothing more arrives. */
  retryDelays?: number[]
  network?: Network
  fetch?: typeof fetch
}

export interface TusOptions {
  endpoint: string
  httpStack: HttpStack
  retryDelays: number[]
  removeFingerprintOnSuccess: true
  /** next: Uppy's own, which may put the request at the end of its queue. */
  onShouldRetry(
    error: Error | DetailedError,
    attempt: number,
    options: unknown,
    next?: (error: DetailedError) => boolean,
  ): boolean
}

const RETRY_DELAYS = [0, 1_000, 3_000, 5_000, 10_000, 20_000, 30_000, 60_000, 60_000, 60_000]
const MOST_REFUSALS = 3
/** Uploads whose tokens are remembered. For others the access token does. */
const MOST_TOKENS = 1_000

/** Options for `new tus.Upload(file, { ...tusOptions(…), … })` and `uppy.use(Tus, { ...tusOptions(…) })`. One for all uploads. */
export function tusOptions(input: TusOptionsInput): TusOptions {
  const base = typeof location === 'undefined' ? undefined : location.href
  const endpoint = new URL(input.endpoint, base).href
  return {
    endpoint,
    httpStack: new TokenStack(input, endpoint),
    retryDelays: input.retryDelays ?? RETRY_DELAYS,
    removeFingerprintOnSuccess: true,
    onShouldRetry(error, _attempt, _options, next) {
      const found = failureBehind(error)
      if (found instanceof UploadError) return false
      const verdict = judge(found)
      if (verdict.do !== 'retry' && verdict.do !== 'authenticate') return false
      next?.(error as DetailedError)
      return true
    },
  }
}

/** A request that was answered, or not sent, for a reason that tus-js-client must not decide on. */
class NotDone extends Error {
  constructor(readonly failure: Failure) {
    super(errorOf(failure, 'rejected').message)
  }
}

function failureBehind(error: Error & Partial<DetailedError>): Failure | UploadError {
  const cause: unknown = error.causingError
  if (cause instanceof NotDone) return cause.failure
  if (cause instanceof UploadError) return cause
  return failureOf(cause instanceof Error && !error.originalResponse ? cause : error)
}

class TokenStack implements HttpStack {
  readonly #endpoint: string
  readonly #fetch: typeof fetch
  readonly #refreshUrl: string
  readonly #tokens = new Map<string, Credentials>()
  /** Creations whose answer did not come, by length and metadata: a duplicate may be their work. */
  readonly lost = new Set<string>()
  /** Uploads that are gone on with from somewhere else than their beginning. */
  readonly behind = new Set<string>()
  readonly network: Network

  constructor(
    readonly input: TusOptionsInput,
    endpoint: string,
  ) {
    const given = input.fetch
    this.#endpoint = endpoint
    this.#fetch = given ?? ((...request) => fetch(...request))
    this.#refreshUrl = new URL(input.refreshUrl ?? '/auth/refresh-upload-token', endpoint).href
    this.network = input.network ?? browserNetwork()
  }

  createRequest(method: string, url: string): HttpRequest {
    return new TokenRequest(this, method, url)
  }

  getName(): string {
    return 'TusdPyHttpStack'
  }

  /** The tokens of an upload; for the collection, ones of its own. */
  tokensOf(url: string): Credentials {
    const known = this.#tokens.get(url)
    if (known) return known
    const credentials = new Credentials({
      getAccessToken: this.input.getAccessToken,
      refreshUrl: this.#refreshUrl,
      refreshEvery: Number.POSITIVE_INFINITY,
      fetch: this.#fetch,
      now: Date.now,
      onChange: () => {},
    })
    if (url === this.#endpoint) return credentials
    credentials.uploadId = uploadIdOf(url)
    this.#tokens.set(url, credentials)
    for (const oldest of this.#tokens.keys()) {
      if (this.#tokens.size <= MOST_TOKENS) break
      this.#tokens.delete(oldest)
    }
    return credentials
  }

  forget(url: string): void {
    this.#tokens.delete(url)
    this.behind.delete(url)
  }

  /** The URL of an upload as the server gave it. */
  resolve(location: string): string {
    return new URL(location, this.#endpoint).href
  }
}

class TokenRequest implements HttpRequest {
  readonly #stack: TokenStack
  readonly #method: string
  readonly #url: string
  readonly #headers = new Map<string, string>()
  #progress: (sent: number) => void = () => {}
  #request: HttpRequest
  #aborted = false

  constructor(stack: TokenStack, method: string, url: string) {
    this.#stack = stack
    this.#method = method
    this.#url = url
    this.#request = open(method, url)
  }

  getMethod(): string {
    return this.#method
  }

  getURL(): string {
    return this.#url
  }

  setHeader(header: string, value: string): void {
    this.#headers.set(header, value)
  }

  getHeader(header: string): string | undefined {
    return this.#headers.get(header)
  }

  setProgressHandler(handler: (sent: number) => void): void {
    this.#progress = handler
  }

  getUnderlyingObject(): unknown {
    return this.#request.getUnderlyingObject()
  }

  abort(): Promise<void> {
    this.#aborted = true
    return this.#request.abort()
  }

  /** Sends it with a token, again with another one after a 401, and again by force if the user wants it. */
  async send(body: unknown): Promise<HttpResponse> {
    this.#refuseBehind()
    const tokens = this.#stack.tokensOf(this.#url)
    for (let refusals = 0; ; ) {
      const response = await this.#sendOnce(tokens, body)
      const failure = failureIn(this.#method, response)
      const verdict = response.getStatus() < 300 ? null : judge(failure)
      if (verdict === null) {
        this.#succeeded(tokens, response)
        return response
      }
      if (verdict.do === 'authenticate' && refusals < MOST_REFUSALS) {
        refusals += 1
        await tokens.replace(this.#method).catch(unlessFinished(tokens))
        if (!isStream(body)) continue
      }
      if (verdict.do === 'ask') {
        const answer = await this.#answer(verdict.duplicate)
        const { location, offset = 0 } = verdict.duplicate
        if (answer === 'resume' && location) return this.#resumeAt(response, location, offset)
        if (answer === 'force') {
          this.#headers.set('Upload-Force', 'true')
          continue
        }
      }
      // To any refusal of a HEAD tus-js-client answers with a new upload, which is right only where the old one is gone.
      if (this.#method === 'HEAD' && verdict.do !== 'restart') throw new NotDone(failure)
      if (verdict.do === 'restart') this.#stack.forget(this.#url)
      return response
    }
  }

  async #sendOnce(tokens: Credentials, body: unknown): Promise<HttpResponse> {
    const { network, lost } = this.#stack
    if (!network.online) await nextOnline(network).came
    const value = await tokens.authorization(this.#method).catch(async (problem) => {
      unlessFinished(tokens)(problem)
      return tokens.authorization(this.#method)
    })
    // An upload that was paused or removed meanwhile waits for nothing any more; an error would be one of its next attempt.
    if (this.#aborted) return new Promise(() => {})
    const request = this.#fresh()
    if (value) request.setHeader('Authorization', value)
    if (this.#method === 'POST') lost.add(this.#creation())
    const response = await request.send(body)
    // The answer to a creation has not been lost, unless a gateway gave it instead of the server.
    if (response.getStatus() < 500 && response.getStatus() !== 409) lost.delete(this.#creation())
    return response
  }

  /** A request like this one that was not sent yet; sends no `Authorization` of others. */
  #fresh(): HttpRequest {
    const last = this.#request.getUnderlyingObject() as { withCredentials?: boolean } | undefined
    const request = open(this.#method, this.#url)
    const next = request.getUnderlyingObject() as { withCredentials?: boolean } | undefined
    if (last?.withCredentials && next) next.withCredentials = true
    for (const [header, value] of this.#headers) {
      if (header.toLowerCase() !== 'authorization') request.setHeader(header, value)
    }
    request.setProgressHandler(this.#progress)
    this.#request = request
    return request
  }

  #succeeded(tokens: Credentials, response: HttpResponse): void {
    if (this.#method === 'HEAD') this.#stack.behind.delete(this.#url)
    if (this.#method === 'DELETE') this.#stack.forget(this.#url)
    const location = response.getHeader('Location')
    if (this.#method !== 'POST' || !location) return
    const header = (name: string) => response.getHeader(name)
    if (header('Upload-Token'))
      this.#stack.tokensOf(this.#stack.resolve(location)).adoptFrom({ header })
    tokens.forget()
  }

  async #answer(duplicate: Duplicate): Promise<DuplicateAnswer> {
    const creation = this.#creation()
    const own = this.#stack.lost.delete(creation)
    // Made by a creation of ours whose answer was lost: nobody has to be asked about that.
    if (own && duplicate.canResume && duplicate.offset === 0) return 'resume'
    const metadata = decoded(this.#headers.get('Upload-Metadata') ?? '')
    return (await this.#stack.input.onDuplicate?.(duplicate, metadata)) ?? 'give-up'
  }

  /** What a creation of the unfinished upload would have been answered with. */
  #resumeAt(response: HttpResponse, location: string, offset: number): HttpResponse {
    const url = this.#stack.resolve(location)
    if (offset > 0) this.#stack.behind.add(url)
    const headers: Record<string, string> = { location: url, 'upload-offset': String(offset) }
    return {
      getStatus: () => 201,
      getHeader: (name) => headers[name.toLowerCase()],
      getBody: () => '',
      getUnderlyingObject: () => response.getUnderlyingObject(),
    }
  }

  /** tus-js-client takes what a creation gave for empty. A refused PATCH has it ask for the offset. */
  #refuseBehind(): void {
    if (this.#method !== 'PATCH' || !this.#stack.behind.delete(this.#url)) return
    if (this.#headers.get('Upload-Offset') !== '0') return
    const header = () => null
    throw new NotDone({ method: 'PATCH', status: 409, body: 'the offset is another one', header })
  }

  #creation(): string {
    return `${this.#headers.get('Upload-Length')} ${this.#headers.get('Upload-Metadata')}`
  }
}

function open(method: string, url: string): HttpRequest {
  return defaultOptions.httpStack.createRequest(method, url)
}

/** The upload token of a finished upload is not renewed any more; the user's own does. */
function unlessFinished(tokens: Credentials): (problem: unknown) => void {
  return (problem) => {
    if (!(problem instanceof Finished)) throw problem
    tokens.forget()
  }
}

function failureIn(method: string, response: HttpResponse): Failure {
  return {
    method,
    status: response.getStatus(),
    body: response.getBody() ?? '',
    header: (name) => response.getHeader(name),
  }
}

/** Under Node a body may be a stream, which cannot be sent twice. */
function isStream(body: unknown): boolean {
  return typeof (body as { pipe?: unknown } | null)?.pipe === 'function'
}

function decoded(header: string): Record<string, string> {
  const pairs = header.split(',').map((pair) => pair.trim().split(' '))
  return Object.fromEntries(
    pairs.filter(([key]) => key).map(([key, value = '']) => [key, textOf(value)]),
  )
}

function textOf(base64: string): string {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))
  return new TextDecoder().decode(bytes)
}
