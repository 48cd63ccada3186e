// What can be wrong with an upload, and what follows from it. `judge` decides it from plain values; it waits for nothing
// and sends nothing.

/** What a page may want to tell apart; `code` of the error is the server's own word. */
export type ErrorKind =
  | 'network' // no answer, or one that says to come again; only ever seen if `shouldRetry` said no
  | 'unauthorized' // 401, also with the newest access token
  | 'forbidden' // 403
  | 'gone' // 404 or 410: the upload is not there (any more)
  | 'duplicate' // 409, and the answer was to leave it
  | 'too-large' // 413
  | 'unsupported' // 415
  | 'rejected' // 400, and what else the server will not take
  | 'source' // the file cannot be read, or is not what it was
  | 'elsewhere' // another tab is at it

/** Why an upload failed. status, code: the server's, where it answered. */
export class UploadError extends Error {
  readonly kind: ErrorKind
  readonly status: number | undefined
  readonly code: string | undefined

  constructor(
    kind: ErrorKind,
    message: string,
    more: { status?: number | undefined; code?: string | undefined; cause?: unknown } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause })
    this.name = 'UploadError'
    this.kind = kind
    this.status = more.status
    this.code = more.code
  }
}

/** `getAccessToken` threw, or returned what can be no token. cause: what it threw. */
export class NoAccessToken extends Error {
  constructor(reason: string, cause?: unknown) {
    super(`getAccessToken ${reason}`, cause === undefined ? undefined : { cause })
  }
}

/** What the server says of an upload that was begun, or made, before. */
export interface Duplicate {
  /** Of the upload with the same metadata and length (or what else the server compares). `complete`: finished. `pending`: begun. */
  state: 'complete' | 'pending'
  /** Whether the answer `resume` is possible: it is the user's own, and can be gone on with. */
  canResume: boolean
  /** Where, if it is. */
  location: string | undefined
  /** Bytes that are there, if it is. */
  offset: number | undefined
  /** A sentence of the server's. */
  detail: string
  fingerprint: string | undefined
}

/** A request that did not do what it should. status: null without an answer. */
export interface Failure {
  method: string
  status: number | null
  body: string
  header(name: string): string | null | undefined
  cause?: unknown
}

export type Verdict =
  | { do: 'retry'; error: UploadError; after: number | null }
  | { do: 'authenticate'; error: UploadError }
  | { do: 'ask'; error: UploadError; duplicate: Duplicate }
  | { do: 'restart'; error: UploadError }
  | { do: 'fail'; error: UploadError }

const RETRIED = new Set([408, 409, 423, 425, 429, 460])
const KINDS: Record<number, ErrorKind> = {
  403: 'forbidden',
  404: 'gone',
  410: 'gone',
  413: 'too-large',
  415: 'unsupported',
}

/**
 * What to do after a failure. `restart` is for an upload that is gone, where it is wanted. `after`: milliseconds that the
 * server asks to wait, null if it says nothing.
 */
export function judge(failure: Failure): Verdict {
  const { status } = failure
  if (status === null) {
    const { cause } = failure
    const error =
      cause instanceof NoAccessToken
        ? new UploadError('network', cause.message, { cause: cause.cause })
        : new UploadError('network', 'no answer from the server', { cause })
    return { do: 'retry', error, after: null }
  }
  const duplicate = status === 409 && failure.method === 'POST' ? duplicateOf(failure) : undefined
  if (duplicate) {
    const error = errorOf(failure, 'duplicate')
    return { do: 'ask', error, duplicate }
  }
  if (status === 401) return { do: 'authenticate', error: errorOf(failure, 'unauthorized') }
  // An answer of success without what belongs to it comes from something in between: a captive portal, a proxy.
  if (status < 400 || status >= 500 || RETRIED.has(status)) {
    return { do: 'retry', error: errorOf(failure, 'network'), after: retryAfter(failure) }
  }
  const kind = KINDS[status] ?? 'rejected'
  if (kind === 'gone' && failure.method !== 'POST') {
    return { do: 'restart', error: errorOf(failure, kind) }
  }
  return { do: 'fail', error: errorOf(failure, kind) }
}

/** The error that a refusal stands for: problem details, or a line `ERR_…: sentence`. */
export function errorOf(failure: Failure, kind: ErrorKind): UploadError {
  const problem = document(failure.body)
  const line = /^(ERR_[A-Z0-9_]+): ?(.*)/.exec(failure.body)
  const code = text(problem.code) ?? line?.[1]
  const message = text(problem.detail) ?? line?.[2] ?? `the server answered ${failure.status}`
  return new UploadError(kind, message, {
    status: failure.status ?? undefined,
    code,
    cause: failure.cause,
  })
}

function duplicateOf(failure: Failure): Duplicate | undefined {
  const problem = document(failure.body)
  if (problem.code !== 'ERR_DUPLICATE_UPLOAD') return undefined
  const location = text(problem.location)
  const offset = problem.offset
  return {
    state: problem.state === 'complete' ? 'complete' : 'pending',
    canResume: location !== undefined,
    location,
    offset: typeof offset === 'number' ? offset : undefined,
    detail: text(problem.detail) ?? '',
    fingerprint: text(problem.fingerprint),
  }
}

/** Milliseconds of `Retry-After`; null without it, and for a date, which no server of ours sends. */
export function retryAfter(failure: Pick<Failure, 'header'>): number | null {
  const value = failure.header('Retry-After')?.trim() ?? ''
  return /^\d{1,9}$/.test(value) ? Number(value) * 1000 : null
}

function document(body: string): Record<string, unknown> {
  try {
    const found: unknown = JSON.parse(body)
    return found !== null && typeof found === 'object' ? (found as Record<string, unknown>) : {}
  } catch {
    return {}
  }
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
