// Waiting that can be broken off: for time, with back-off, and for the network.

/** Breaks a wait off; never shown to anyone. */
export class Stopped extends Error {}

/** Resolves after some milliseconds, or as soon as `wake` does. Throws Stopped when the signal is aborted. */
export function pause(
  milliseconds: number,
  signal: AbortSignal,
  wake?: Promise<void>,
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(new Stopped())
      return
    }
    const end = (then: () => void) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
      then()
    }
    const stop = () => end(() => reject(new Stopped()))
    const timer = setTimeout(() => end(resolve), milliseconds)
    signal.addEventListener('abort', stop)
    wake?.then(() => end(resolve))
  })
}

/** What `promise` comes to. Throws Stopped when the signal is aborted before. */
export function unlessStopped<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new Stopped())
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop)
    const tidy = () => signal.removeEventListener('abort', stop)
    promise.then(resolve, reject).finally(tidy)
  })
}

/** Milliseconds before the next attempt. */
export interface Backoff {
  /** Before the first. */
  min: number
  /** Never more. */
  max: number
}

/** Doubles with each failure (1, 2, …); up to half of it is left to chance, so that clients do not come back all at once. */
export function backoff(failures: number, { min, max }: Backoff, random = Math.random): number {
  const most = Math.min(max, min * 2 ** Math.min(failures - 1, 30))
  return most * (1 - random() / 2)
}

/** Whether there is a network at all. */
export interface Network {
  readonly online: boolean
  /** Calls the listener when it comes or goes; returns what ends that. */
  onChange(listener: () => void): () => void
}

/** The browser's word on it. Where there is none, as in Node, it is always there. */
export function browserNetwork(): Network {
  const target = globalThis as Partial<Pick<Window, 'addEventListener' | 'removeEventListener'>>
  return {
    get online() {
      return typeof navigator === 'undefined' || navigator.onLine !== false
    },
    onChange(listener) {
      target.addEventListener?.('online', listener)
      target.addEventListener?.('offline', listener)
      return () => {
        target.removeEventListener?.('online', listener)
        target.removeEventListener?.('offline', listener)
      }
    },
  }
}

/** Resolves when the network comes (back). With `stop`, as nobody may be waiting any more. */
export function nextOnline(network: Network): { came: Promise<void>; stop: () => void } {
  let stop = () => {}
  const came = new Promise<void>((resolve) => {
    stop = network.onChange(() => {
      if (network.online) {
        stop()
        resolve()
      }
    })
  })
  return { came, stop }
}

/** So many at a time; who has waited longest comes first, those of a higher priority before the others. */
export class Slots {
  #free: number
  #waiting: { priority: number; take: () => void }[] = []

  constructor(count: number) {
    this.#free = count
  }

  /** Whether one would be had at once. */
  get free(): boolean {
    return this.#free > 0
  }

  /** Resolves to what gives the place back. Throws Stopped. */
  take(priority: number, signal: AbortSignal): Promise<() => void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(new Stopped())
        return
      }
      const stop = () => {
        this.#waiting = this.#waiting.filter((each) => each !== entry)
        reject(new Stopped())
      }
      const entry = {
        priority,
        take: () => {
          signal.removeEventListener('abort', stop)
          resolve(this.#release())
        },
      }
      signal.addEventListener('abort', stop)
      const after = this.#waiting.findIndex((each) => each.priority < priority)
      this.#waiting.splice(after < 0 ? this.#waiting.length : after, 0, entry)
      this.#next()
    })
  }

  #release(): () => void {
    let given = false
    return () => {
      if (given) return
      given = true
      this.#free += 1
      this.#next()
    }
  }

  #next(): void {
    while (this.#free > 0) {
      const entry = this.#waiting.shift()
      if (!entry) return
      this.#free -= 1
      entry.take()
    }
  }
}
