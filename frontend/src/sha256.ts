// SHA-256 by pieces (FIPS 180-4). `crypto.subtle` wants the whole file in memory, and is there on secure origins alone.

const K = new Int32Array(64)
const INITIAL = new Int32Array(8)

/** The first 32 bits of the fractional part. */
function fraction(value: number): number {
  return ((value - Math.floor(value)) * 2 ** 32) | 0
}

for (let candidate = 2, found = 0; found < 64; candidate += 1) {
  let isPrime = true
  for (let divisor = 2; divisor * divisor <= candidate; divisor += 1) {
    if (candidate % divisor === 0) isPrime = false
  }
  if (!isPrime) continue
  if (found < 8) INITIAL[found] = fraction(Math.sqrt(candidate))
  K[found] = fraction(Math.cbrt(candidate))
  found += 1
}

const BLOCK = 64

export class Sha256 {
  readonly #state = INITIAL.slice()
  readonly #words = new Int32Array(64)
  readonly #rest = new Uint8Array(BLOCK)
  #held = 0
  #length = 0

  update(bytes: Uint8Array): this {
    this.#length += bytes.length
    let at = 0
    if (this.#held > 0) {
      at = Math.min(BLOCK - this.#held, bytes.length)
      this.#rest.set(bytes.subarray(0, at), this.#held)
      this.#held += at
      if (this.#held < BLOCK) return this
      this.#compress(this.#rest, 0)
      this.#held = 0
    }
    for (; at + BLOCK <= bytes.length; at += BLOCK) this.#compress(bytes, at)
    this.#rest.set(bytes.subarray(at))
    this.#held = bytes.length - at
    return this
  }

  /** In hexadecimal. Nothing can be added afterwards. */
  digest(): string {
    const bits = this.#length * 8
    const zeros = (BLOCK + 55 - (this.#length % BLOCK)) % BLOCK
    const end = new Uint8Array(1 + zeros + 8)
    end[0] = 0x80
    const view = new DataView(end.buffer)
    view.setUint32(1 + zeros, Math.floor(bits / 2 ** 32))
    view.setUint32(5 + zeros, bits >>> 0)
    this.update(end)
    return [...this.#state].map((word) => (word >>> 0).toString(16).padStart(8, '0')).join('')
  }

  #compress(bytes: Uint8Array, start: number): void {
    const words = this.#words
    for (let i = 0, at = start; i < 16; i += 1, at += 4) {
      words[i] =
        (byte(bytes, at) << 24) |
        (byte(bytes, at + 1) << 16) |
        (byte(bytes, at + 2) << 8) |
        byte(bytes, at + 3)
    }
    for (let i = 16; i < 64; i += 1) {
      const x = word(words, i - 15)
      const y = word(words, i - 2)
      const low = rotated(x, 7) ^ rotated(x, 18) ^ (x >>> 3)
      const high = rotated(y, 17) ^ rotated(y, 19) ^ (y >>> 10)
      words[i] = (word(words, i - 16) + low + word(words, i - 7) + high) | 0
    }
    const state = this.#state
    let a = word(state, 0)
    let b = word(state, 1)
    let c = word(state, 2)
    let d = word(state, 3)
    let e = word(state, 4)
    let f = word(state, 5)
    let g = word(state, 6)
    let h = word(state, 7)
    for (let i = 0; i < 64; i += 1) {
      const high = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)
      const one = (h + high + ((e & f) ^ (~e & g)) + word(K, i) + word(words, i)) | 0
      const low = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)
      const two = (low + ((a & b) ^ (a & c) ^ (b & c))) | 0
      h = g
      g = f
      f = e
      e = (d + one) | 0
      d = c
      c = b
      b = a
      a = (one + two) | 0
    }
    state[0] = word(state, 0) + a
    state[1] = word(state, 1) + b
    state[2] = word(state, 2) + c
    state[3] = word(state, 3) + d
    state[4] = word(state, 4) + e
    state[5] = word(state, 5) + f
    state[6] = word(state, 6) + g
    state[7] = word(state, 7) + h
  }
}

function rotated(value: number, by: number): number {
  return (value >>> by) | (value << (32 - by))
}

function byte(bytes: Uint8Array, at: number): number {
  return bytes[at] as number
}

function word(words: Int32Array, at: number): number {
  return words[at] as number
}
