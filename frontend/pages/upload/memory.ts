// What the page itself keeps in the browser beside the manager's uploads: handles of files, so that an upload goes on without the
// file being chosen again, and where finished uploads are, so that a duplicate can be opened.

const NAME = 'tusd-py-page'
const HANDLES = 'handles'
const FINISHED = 'finished'
/** The latest finished uploads that are kept. */
const MOST_FINISHED = 200

export interface Finished {
  fingerprint: string
  url: string
  when: number
}

export class Memory {
  #database: Promise<IDBDatabase> | undefined

  async handles(): Promise<Map<string, FileSystemFileHandle>> {
    const [keys, values] = await Promise.all([
      this.#do(HANDLES, 'readonly', (table) => table.getAllKeys()),
      this.#do(HANDLES, 'readonly', (table) => table.getAll()),
    ])
    return new Map(keys.map((key, index) => [String(key), values[index]]))
  }

  async keepHandle(id: string, handle: FileSystemFileHandle): Promise<void> {
    await this.#do(HANDLES, 'readwrite', (table) => table.put(handle, id))
  }

  async forgetHandle(id: string): Promise<void> {
    await this.#do(HANDLES, 'readwrite', (table) => table.delete(id))
  }

  async keepFinished(fingerprint: string, url: string): Promise<void> {
    await this.#do(FINISHED, 'readwrite', (table) =>
      table.put({ fingerprint, url, when: Date.now() }),
    )
    const all = (await this.#do(FINISHED, 'readonly', (table) => table.getAll())) as Finished[]
    const old = all.sort((one, other) => other.when - one.when).slice(MOST_FINISHED)
    for (const each of old) {
      await this.#do(FINISHED, 'readwrite', (table) => table.delete(each.fingerprint))
    }
  }

  /** Where a file with this fingerprint was uploaded to from this browser. */
  async finishedAt(fingerprint: string): Promise<string | undefined> {
    const found = (await this.#do(FINISHED, 'readonly', (table) => table.get(fingerprint))) as
      | Finished
      | undefined
    return found?.url
  }

  async #do<T>(
    name: string,
    mode: IDBTransactionMode,
    ask: (table: IDBObjectStore) => IDBRequest<T>,
  ): Promise<T> {
    const database = await this.#open()
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(name, mode)
      const request = ask(transaction.objectStore(name))
      transaction.oncomplete = () => resolve(request.result)
      transaction.onabort = () => reject(transaction.error)
    })
  }

  #open(): Promise<IDBDatabase> {
    this.#database ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open(NAME, 1)
      request.onupgradeneeded = () => {
        request.result.createObjectStore(HANDLES)
        request.result.createObjectStore(FINISHED, { keyPath: 'fingerprint' })
      }
      request.onerror = () => reject(request.error)
      request.onsuccess = () => resolve(request.result)
    })
    return this.#database
  }
}
