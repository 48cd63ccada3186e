// What is kept so that a reload of the page goes on where it stood: in IndexedDB, or wherever an integrator wants it.

/** One unfinished upload. Times: milliseconds since the epoch. */
export interface UploadRecord {
  /** The manager's own name for it, not the server's. */
  id: string
  /** Whose it is, by the manager's `namespace`. */
  namespace: string
  endpoint: string
  url: string
  fingerprint: string
  name: string
  size: number
  metadata: Record<string, string>
  /** Bytes that the server had when it was last heard of; the server knows better. */
  offset: number
  token: string | null
  tokenExpires: number | null
  created: number
  updated: number
  /** It was cancelled, and the server does not know yet. */
  cancelled: boolean
}

/** Where records are kept. */
export interface UploadStore {
  list(): Promise<UploadRecord[]>
  /** Adds it, or takes the place of the one with the same id. */
  put(record: UploadRecord): Promise<void>
  /** Without a word if there is none. */
  delete(id: string): Promise<void>
}

/** For as long as the page is there. */
export class MemoryStore implements UploadStore {
  readonly #records = new Map<string, UploadRecord>()

  async list(): Promise<UploadRecord[]> {
    return [...this.#records.values()].map((record) => structuredClone(record))
  }

  async put(record: UploadRecord): Promise<void> {
    this.#records.set(record.id, structuredClone(record))
  }

  async delete(id: string): Promise<void> {
    this.#records.delete(id)
  }
}

const TABLE = 'uploads'

/** In the browser, by origin. name: of the database. */
export class IndexedDBStore implements UploadStore {
  readonly #name: string
  #database: Promise<IDBDatabase> | undefined

  constructor(name = 'tusd-py-uploads') {
    this.#name = name
  }

  async list(): Promise<UploadRecord[]> {
    return this.#do('readonly', (table) => table.getAll() as IDBRequest<UploadRecord[]>)
  }

  async put(record: UploadRecord): Promise<void> {
    await this.#do('readwrite', (table) => table.put(record))
  }

  async delete(id: string): Promise<void> {
    await this.#do('readwrite', (table) => table.delete(id))
  }

  async #do<T>(
    mode: IDBTransactionMode,
    ask: (table: IDBObjectStore) => IDBRequest<T>,
  ): Promise<T> {
    const database = await this.#open()
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(TABLE, mode)
      const request = ask(transaction.objectStore(TABLE))
      transaction.oncomplete = () => resolve(request.result)
      transaction.onabort = () => reject(transaction.error)
      transaction.onerror = () => reject(transaction.error)
    })
  }

  #open(): Promise<IDBDatabase> {
    this.#database ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open(this.#name, 1)
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: 'id' })
      request.onerror = () => reject(request.error)
      request.onsuccess = () => {
        const database = request.result
        // A newer page wants to change it, or the browser has thrown it away: it is opened anew when it is needed.
        const forget = () => {
          this.#database = undefined
        }
        database.onversionchange = () => {
          database.close()
          forget()
        }
        database.onclose = forget
        resolve(database)
      }
    }).catch((error: unknown) => {
      this.#database = undefined
      throw error
    })
    return this.#database
  }
}

/** The best that there is here. */
export function defaultStore(): UploadStore {
  return typeof indexedDB === 'undefined' ? new MemoryStore() : new IndexedDBStore()
}

/** Sees to it that only one tab of the browser is at an upload. */
export interface Holding {
  /** Resolves to what lets go, or to null if another has it and does not let go within a moment. */
  take(id: string): Promise<(() => void) | null>
  /** Those that someone has. */
  taken(): Promise<Set<string>>
  /** Resolves when nobody has it. Rejects when the signal is aborted. */
  freed(id: string, signal: AbortSignal): Promise<void>
}

const PREFIX = 'tusd-py-upload:'
/** Milliseconds: a page that was closed or loaded again has its locks a little longer. */
const PATIENCE = 1000

/**
 * By Web Locks, which the browser gives back when a page goes. Without them (insecure origins, or sites that may store nothing)
 * nobody is kept out.
 */
export function browserHolding(): Holding {
  const locks = typeof navigator === 'undefined' ? undefined : navigator.locks
  if (!locks) {
    return { take: async () => () => {}, taken: async () => new Set(), freed: async () => {} }
  }
  return {
    take(id) {
      return new Promise((resolve, reject) => {
        const patience = new AbortController()
        const timer = setTimeout(() => patience.abort(), PATIENCE)
        locks
          .request(PREFIX + id, { signal: patience.signal }, () => {
            clearTimeout(timer)
            return new Promise<void>((release) => resolve(() => release()))
          })
          .catch((problem) => {
            if (patience.signal.aborted) resolve(null)
            else if (isDenied(problem)) resolve(() => {})
            else reject(problem)
          })
      })
    },
    async taken() {
      const { held = [] } = await locks.query().catch((problem) => {
        if (isDenied(problem)) return {} as LockManagerSnapshot
        throw problem
      })
      // Shared ones are of pages that have waited for it, for a moment.
      const names = held.flatMap(({ name, mode }) => (mode === 'exclusive' && name ? [name] : []))
      return new Set(
        names.filter((name) => name.startsWith(PREFIX)).map((name) => name.slice(PREFIX.length)),
      )
    },
    async freed(id, signal) {
      await locks.request(PREFIX + id, { mode: 'shared', signal }, () => {})
    },
  }
}

/** The browser lets this site store nothing, so it has no locks either. */
function isDenied(problem: unknown): boolean {
  return problem instanceof DOMException && problem.name === 'SecurityError'
}
