// Whether the server can be reached. Browsers know cables, not servers: while an upload waits or stands still, a small request is
// sent again and again. One probe for the whole page finds a server that is back sooner than each upload's own attempts would, and
// costs the server less.

import { browserNetwork, type Network } from '../../src/index.js'

/** Milliseconds. A server that is back is noticed within the sum of both. */
const PROBE_TIMEOUT = 1_000
const PROBE_PAUSE = 500
/** So many probes in a row without an answer, and the line counts as lost: one alone may be chance. */
const LOST_AFTER = 2

export class Line implements Network {
  readonly #browser = browserNetwork()
  readonly #listeners = new Set<() => void>()
  readonly #url: URL
  #failures = 0
  #probing = false
  #reachable = true
  /** Whether somebody has reason to doubt that the server is there. */
  doubted: () => boolean = () => false

  constructor(url: URL) {
    this.#url = url
    this.#browser.onChange(() => this.#tell())
    // Timers of pages in the background are slow.
    document.addEventListener('visibilitychange', () => this.look())
  }

  get online(): boolean {
    return this.#browser.online && this.#reachable
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Probes for as long as there is doubt. */
  look(): void {
    if (!this.#probing) void this.#probe()
  }

  async #probe(): Promise<void> {
    this.#probing = true
    try {
      while (!this.#reachable || this.doubted()) {
        this.#failures = (await this.#answers()) ? 0 : this.#failures + 1
        const reachable = this.#failures < (this.#reachable ? LOST_AFTER : 1)
        if (reachable !== this.#reachable) {
          this.#reachable = reachable
          this.#tell()
        }
        await new Promise((resolve) => setTimeout(resolve, PROBE_PAUSE))
      }
      this.#failures = 0
    } finally {
      this.#probing = false
    }
  }

  async #answers(): Promise<boolean> {
    try {
      const signal = AbortSignal.timeout(PROBE_TIMEOUT)
      const answer = await fetch(this.#url, { cache: 'no-store', credentials: 'omit', signal })
      // A proxy before a server that is away answers 502, 503 or 504; any other answer comes from something that lives.
      return answer.status < 500
    } catch {
      return false
    }
  }

  #tell(): void {
    for (const listener of [...this.#listeners]) listener()
  }
}
