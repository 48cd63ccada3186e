// The tokens of one upload: which one a request shows, and how the upload token is renewed before it runs out, or after. It
// knows nothing of how the upload goes.

import { errorOf, type Failure, judge, NoAccessToken, UploadError } from './errors.js'

/**
 * Gives the user's access token; null or undefined if there is none. `rejected` is one that the server has just refused: get
 * another. Where it throws, it is asked again later.
 */
export type GetAccessToken = (asked: { rejected?: string }) => Promise<string | null | undefined>

/** The upload has all its bytes: there is no token to renew. */
export class Finished extends Error {}

/** A renewal that the server, or the lack of one, did not allow. */
export class RenewalFailed extends Error {
  constructor(readonly failure: Failure) {
    super('the upload token was not renewed')
  }
}

export interface CredentialsOptions {
  getAccessToken: GetAccessToken | undefined
  refreshUrl: string
  /** Milliseconds between renewals; less where tokens live less than three times that. */
  refreshEvery: number
  fetch: typeof fetch
  now: () => number
  /** The upload token is another one now. */
  onChange: () => void
}

export interface UploadToken {
  value: string
  /** Milliseconds since the epoch, by this machine's clock; null if nobody knows. */
  expires: number | null
}

const REQUEST_TIMEOUT = 30_000
/** The least between two attempts to renew in the background, and the most. Milliseconds. */
const RETRY_LEAST = 250
const RETRY_MOST = 30_000
const LONGEST_TIMER = 2 ** 31 - 1

export class Credentials {
  readonly #options: CredentialsOptions
  #token: UploadToken | null = null
  #received = 0
  #access: string | null = null
  #renewing: Promise<void> | null = null
  #timer: ReturnType<typeof setTimeout> | undefined
  /** The server's id of the upload, with which the access token can stand in for the upload token. */
  uploadId: string | null = null

  constructor(options: CredentialsOptions) {
    this.#options = options
  }

  get token(): UploadToken | null {
    return this.#token
  }

  /** Takes a token that is known already, or that comes with the creation. life: milliseconds, null if nobody knows. */
  adopt(value: string, life: number | null): void {
    const now = this.#options.now()
    this.#token = { value, expires: life === null ? null : now + life }
    this.#received = now
    this.#options.onChange()
  }

  /** As it was kept. */
  restore(token: UploadToken | null): void {
    this.#token = token
    // Of one whose age nobody knows, half of what is left counts as spent.
    const now = this.#options.now()
    this.#received = token?.expires ? now - Math.max(0, token.expires - now) : now
  }

  /** What the answer to a creation says. */
  adoptFrom(answer: Pick<Failure, 'header'>): void {
    const value = answer.header('Upload-Token')
    if (!value) return
    const expires = Date.parse(answer.header('Upload-Token-Expires') ?? '')
    // By the server's clock alone, as this machine's may be wrong.
    const date = Date.parse(answer.header('Date') ?? '')
    const life = expires - (Number.isNaN(date) ? this.#options.now() : date)
    this.adopt(value, Number.isNaN(life) ? null : Math.max(0, life))
  }

  forget(): void {
    this.#token = null
  }

  /**
   * The value of `Authorization` for a request; null for none. The creation shows the access token, everything else the upload
   * token, renewed first if it has run out. Throws Finished, RenewalFailed, NoAccessToken.
   */
  async authorization(method: string): Promise<string | null> {
    if (method !== 'POST' && this.#token) {
      if (this.#hasRunOut()) await this.renew()
      if (this.#token) return `Bearer ${this.#token.value}`
    }
    const access = await this.#accessToken()
    return access ? `Bearer ${access}` : null
  }

  /** After a 401: gets another token, of whichever kind was shown. Throws as `authorization` does. */
  async replace(method: string): Promise<void> {
    if (method !== 'POST' && this.#token) {
      await this.renew()
    } else {
      await this.#accessToken(this.#access ?? undefined)
    }
  }

  /** Renews the upload token, once however many ask. Throws Finished, RenewalFailed, NoAccessToken. */
  renew(): Promise<void> {
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = null
    })
    return this.#renewing
  }

  /** Renews it in time from now on. */
  begin(): void {
    this.#schedule()
  }

  /** Renews it no more, unless it is needed. */
  stop(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  #life(): number | null {
    const expires = this.#token?.expires
    return expires === null || expires === undefined ? null : Math.max(0, expires - this.#received)
  }

  #hasRunOut(): boolean {
    const expires = this.#token?.expires
    if (expires === null || expires === undefined) return false
    const margin = Math.min(5_000, (this.#life() ?? 0) / 10)
    return this.#options.now() >= expires - margin
  }

  #schedule(): void {
    this.stop()
    if (!this.#token) return
    const life = this.#life()
    const every = Math.min(
      this.#options.refreshEvery,
      life === null ? Number.POSITIVE_INFINITY : life / 3,
    )
    this.#in(this.#received + every - this.#options.now())
  }

  #in(milliseconds: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(
      () => void this.#inTime(),
      Math.min(LONGEST_TIMER, Math.max(0, milliseconds)),
    )
  }

  async #inTime(): Promise<void> {
    try {
      await this.renew()
      if (this.#timer !== undefined) this.#schedule()
    } catch (problem) {
      if (this.#timer === undefined || problem instanceof Finished) return
      // The request that is under way is not cut off when its token runs out; the next one is told what is wrong.
      const verdict = problem instanceof RenewalFailed ? judge(problem.failure) : null
      if (verdict !== null && verdict.do !== 'retry') return
      const soon = Math.min(RETRY_MOST, Math.max(RETRY_LEAST, (this.#life() ?? 0) / 6))
      this.#in(Math.max(soon, verdict?.after ?? 0))
    }
  }

  async #renew(): Promise<void> {
    let refused: Failure | null = null
    if (this.#token) {
      refused = await this.#ask(this.#token.value, undefined)
      if (refused === null) return
      if (refused.status !== 401) throw this.#failed(refused)
    }
    // Beyond the grace period, or with a token that never counted: the user's own word does.
    let access = await this.#accessToken()
    if (access) {
      refused = await this.#ask(access, this.uploadId ?? undefined)
      if (refused?.status === 401) {
        const next = await this.#accessToken(access)
        if (next && next !== access) {
          access = next
          refused = await this.#ask(access, this.uploadId ?? undefined)
        }
      }
      if (refused === null) return
    }
    throw refused ? this.#failed(refused) : new UploadError('unauthorized', 'there is no token')
  }

  #failed(refused: Failure): Error {
    const finished =
      refused.status === 409 && errorOf(refused, 'rejected').code === 'ERR_UPLOAD_FINISHED'
    return finished ? new Finished() : new RenewalFailed(refused)
  }

  /** Asks for another token by the one that is given. Null if there is one; else what the server said. */
  async #ask(bearer: string, uploadId: string | undefined): Promise<Failure | null> {
    const broken = new AbortController()
    const timer = setTimeout(() => broken.abort(), REQUEST_TIMEOUT)
    try {
      const answer = await this.#options.fetch(this.#options.refreshUrl, {
        method: 'POST',
        headers: {
          Authorization: `Bearer ${bearer}`,
          ...(uploadId === undefined ? {} : { 'Content-Type': 'application/json' }),
        },
        ...(uploadId === undefined ? {} : { body: JSON.stringify({ upload_id: uploadId }) }),
        cache: 'no-store',
        signal: broken.signal,
      })
      const body = await answer.text()
      const renewed = answer.ok ? tokenIn(body) : null
      if (renewed) {
        this.adopt(renewed.value, renewed.life)
        return null
      }
      // A success without a token is something in between that answers for the server.
      return failure(answer.ok ? null : answer.status, body, (name) => answer.headers.get(name))
    } catch (cause) {
      return { ...failure(null, '', () => null), cause }
    } finally {
      clearTimeout(timer)
    }
  }

  async #accessToken(rejected?: string): Promise<string | null> {
    const asked = rejected === undefined ? {} : { rejected }
    const given = (await this.#given(asked)) || null
    // Such as the page that an application answers with in place of a token: browsers refuse it as a field.
    if (given !== null && !/^[\x20-\x7e]+$/.test(given))
      throw new NoAccessToken('returned no token')
    this.#access = given
    return this.#access
  }

  async #given(asked: { rejected?: string }): Promise<string | null | undefined> {
    try {
      return await this.#options.getAccessToken?.(asked)
    } catch (problem) {
      const reason = problem instanceof Error ? problem.message : String(problem)
      throw new NoAccessToken(`failed: ${reason}`, problem)
    }
  }
}

function failure(status: number | null, body: string, header: Failure['header']): Failure {
  return { method: 'REFRESH', status, body, header }
}

function tokenIn(body: string): { value: string; life: number | null } | null {
  try {
    const { upload_token: value, expires_in: lasts } = JSON.parse(body) as Record<string, unknown>
    if (typeof value !== 'string') return null
    return { value, life: typeof lasts === 'number' ? lasts * 1000 : null }
  } catch {
    return null
  }
}
