// The user's access token: from the integrator's endpoint, or from a field of the page. It is in memory and, from the field, in
// the tab's session storage; never in a URL.

import { keep, kept } from '../shared/kept.js'

const KEPT = 'tusd-py-token'

export class Tokens {
  #token: string | null
  #asking: Promise<string> | null = null
  #wake: (token: string) => void = () => {}
  /** Uploads wait for the user to enter one. */
  needed = false
  /** The last one was not accepted. */
  refused = false
  /** The endpoint gave none. */
  unavailable = false

  /** url: of the endpoint; empty for the field. */
  constructor(
    readonly url: string,
    readonly onChange: () => void,
  ) {
    this.#token = url ? null : kept('sessionStorage', KEPT)
  }

  get has(): boolean {
    return this.#token !== null
  }

  /** As an UploadManager asks for it; one question at a time, however many uploads have it. */
  readonly get = async ({ rejected }: { rejected?: string }): Promise<string> => {
    if (this.#token !== null && this.#token !== rejected) return this.#token
    if (rejected !== undefined && this.#token === rejected) this.refused = true
    this.#asking ??= (this.url ? this.#fetch() : this.#wait()).finally(() => {
      this.#asking = null
    })
    return this.#asking
  }

  /** What the user entered. */
  enter(token: string): void {
    this.#token = token
    this.needed = this.refused = false
    keep('sessionStorage', KEPT, token)
    this.#wake(token)
    this.onChange()
  }

  /** Lets the user enter another one. */
  change(): void {
    this.#token = null
    keep('sessionStorage', KEPT, null)
    this.onChange()
  }

  #wait(): Promise<string> {
    this.#token = null
    this.needed = true
    this.onChange()
    return new Promise((resolve) => {
      this.#wake = resolve
    })
  }

  /** A text, or JSON with `access_token` or `token`. */
  async #fetch(): Promise<string> {
    try {
      const answer = await fetch(this.url, {
        credentials: 'include',
        cache: 'no-store',
        headers: { Accept: 'application/json, text/plain' },
      })
      const text = (await answer.text()).trim()
      const token = answer.ok ? tokenOf(text) : ''
      if (!token) throw new Error(`no token: the endpoint answered ${answer.status}`)
      this.#token = token
      this.#known(false)
      return token
    } catch (problem) {
      this.#known(true)
      throw problem
    }
  }

  #known(unavailable: boolean): void {
    if (this.unavailable === unavailable) return
    this.unavailable = unavailable
    this.onChange()
  }
}

function tokenOf(text: string): string {
  if (!text.startsWith('{')) return /^[\w.~+/=-]+$/.test(text) ? text : ''
  const { access_token: access, token } = JSON.parse(text) as Record<string, unknown>
  const found = access ?? token
  return typeof found === 'string' ? found : ''
}
