// Removes an upload at the server, however long it takes to get through.

import { type DetailedError, defaultOptions, Upload as TusUpload } from 'tus-js-client'
import { type Credentials, Finished, RenewalFailed } from './credentials.js'
import { type Failure, judge, UploadError, type Verdict } from './errors.js'
import { type Backoff, backoff, type Network, nextOnline, pause, Stopped } from './waiting.js'

export interface Removal {
  url: string
  credentials: Credentials
  headers: Record<string, string>
  network: Network
  retry: Backoff
  signal: AbortSignal
}

const MOST_REFUSALS = 3

/** True once it is gone; false if the server will not remove it (its answer is final). Throws Stopped. */
export async function removeUpload(removal: Removal): Promise<boolean> {
  const { credentials, network, retry, signal } = removal
  let failures = 0
  let refusals = 0
  for (;;) {
    let verdict: Verdict
    try {
      await attempt(removal)
      return true
    } catch (problem) {
      if (problem instanceof Finished) {
        // There is no upload token for it any more; the user's own does.
        credentials.forget()
        continue
      }
      if (problem instanceof UploadError) return false
      verdict = judge(failureOf(problem))
    }
    if (verdict.do === 'restart') return true
    if (verdict.do === 'authenticate') {
      refusals += 1
      if (refusals > MOST_REFUSALS || !(await replaced(credentials))) return false
      continue
    }
    if (verdict.do !== 'retry') return false
    failures += 1
    const wait = Math.max(verdict.after ?? 0, backoff(failures, retry))
    const { came, stop } = nextOnline(network)
    try {
      await pause(wait, signal, came)
    } finally {
      stop()
    }
  }
}

/** Throws what went wrong. */
async function attempt({ url, credentials, headers, signal }: Removal): Promise<void> {
  let kept: unknown
  try {
    await TusUpload.terminate(url, {
      // Added to the options of uploads by tus-js-client, but not to those of removals.
      httpStack: defaultOptions.httpStack,
      headers,
      retryDelays: null,
      async onBeforeRequest(request) {
        try {
          const value = await credentials.authorization('DELETE')
          if (value) request.setHeader('Authorization', value)
        } catch (problem) {
          kept = problem
          throw problem
        }
        if (signal.aborted) throw new Stopped()
      },
    })
  } catch (problem) {
    throw kept ?? problem
  }
}

/** Whether there is another token now, or may be. */
async function replaced(credentials: Credentials): Promise<boolean> {
  try {
    await credentials.replace('DELETE')
  } catch (problem) {
    if (problem instanceof Finished) credentials.forget()
    else if (problem instanceof UploadError) return false
    else if (problem instanceof RenewalFailed) return judge(problem.failure).do !== 'authenticate'
  }
  return true
}

/** What tus-js-client tells of a request, and what kept it from being sent. */
export function failureOf(error: unknown): Failure {
  if (error instanceof RenewalFailed) return error.failure
  if (isDetailed(error)) {
    const cause: unknown = error.causingError
    const response = error.originalResponse
    return {
      method: error.originalRequest.getMethod(),
      status: response?.getStatus() ?? null,
      body: response?.getBody() ?? '',
      header: (name) => response?.getHeader(name),
      // Not the error itself: it has the request, whose token whoever prints the cause would show.
      cause: cause ?? new Error(error.message),
    }
  }
  return { method: '', status: null, body: '', header: () => null, cause: error }
}

/** A page may have another copy of tus-js-client, whose class is another one. */
function isDetailed(error: unknown): error is DetailedError {
  return error instanceof Error && 'originalRequest' in error && Boolean(error.originalRequest)
}
