// How fast it goes: bytes a second, smoothed so that a number on a page can be read.

/** Seconds after which what was measured counts for little more than a third. */
const SMOOTHING = 4
/** Seconds that are measured at once at least: events come in bursts. */
const STEP = 0.25

/** Measures one upload. Times are milliseconds. */
export class Speed {
  #rate: number | null = null
  #bytes = 0
  #time = 0

  /** From here on; what came before is forgotten. */
  begin(bytes: number, now: number): void {
    this.#rate = null
    this.#bytes = bytes
    this.#time = now
  }

  /** So many bytes are there now. */
  add(bytes: number, now: number): void {
    const seconds = (now - this.#time) / 1000
    if (seconds < STEP) return
    const rate = Math.max(0, bytes - this.#bytes) / seconds
    const weight = 1 - Math.exp(-seconds / SMOOTHING)
    this.#rate = this.#rate === null ? rate : this.#rate + weight * (rate - this.#rate)
    this.#bytes = bytes
    this.#time = now
  }

  /** Bytes a second; null while nothing can be said. */
  get rate(): number | null {
    return this.#rate
  }
}
