// For programs under Node: files of the disk as sources, and a file in which unfinished uploads are kept.

import { createReadStream, type ReadStream } from 'node:fs'
import { open, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import type { Source } from './source.js'
import type { UploadRecord, UploadStore } from './store.js'

export * from './index.js'

/** A file of the disk. Throws if there is none. type: its media type, if it matters. */
export async function openFile(path: string, type = ''): Promise<Source> {
  const absolute = resolve(path)
  const { size, mtimeMs } = await stat(absolute)
  const streams = new Set<ReadStream>()
  return {
    name: basename(absolute),
    type,
    size,
    lastModified: Math.floor(mtimeMs),
    data: absolute,
    reader: {
      openFile: async () => ({
        size,
        async slice(start, end) {
          const last = Math.min(end, size)
          const stream = createReadStream(absolute, { start, end: Math.max(start, last - 1) })
          streams.add(stream)
          stream.on('close', () => streams.delete(stream))
          return { value: Object.assign(stream, { size: last - start }), done: last >= size }
        },
        close: () => {},
      }),
    },
    release() {
      for (const stream of streams) stream.destroy()
    },
    async isChanged() {
      const now = await stat(absolute).catch(() => null)
      return now !== null && (now.size !== size || now.mtimeMs !== mtimeMs)
    },
    async read(start, end) {
      const now = await stat(absolute)
      if (now.size !== size || now.mtimeMs !== mtimeMs) throw new Error('the file was changed')
      const file = await open(absolute)
      try {
        const { buffer, bytesRead } = await file.read(
          Buffer.alloc(end - start),
          0,
          end - start,
          start,
        )
        return buffer.subarray(0, bytesRead)
      } finally {
        await file.close()
      }
    },
  }
}

/** Keeps unfinished uploads in one file, for one process at a time. It holds tokens: nobody else may read it. */
export class FileStore implements UploadStore {
  readonly #path: string
  #last: Promise<unknown> = Promise.resolve()

  constructor(path: string) {
    this.#path = resolve(path)
  }

  list(): Promise<UploadRecord[]> {
    return this.#next(async () => [...(await this.#read()).values()])
  }

  put(record: UploadRecord): Promise<void> {
    return this.#next(async () => {
      const records = await this.#read()
      await this.#write(records.set(record.id, record))
    })
  }

  delete(id: string): Promise<void> {
    return this.#next(async () => {
      const records = await this.#read()
      if (records.delete(id)) await this.#write(records)
    })
  }

  #next<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work)
    this.#last = done.catch(() => {})
    return done
  }

  async #read(): Promise<Map<string, UploadRecord>> {
    let text: string
    try {
      text = await readFile(this.#path, 'utf8')
    } catch (problem) {
      if ((problem as NodeJS.ErrnoException).code === 'ENOENT') return new Map()
      throw problem
    }
    const records = JSON.parse(text) as UploadRecord[]
    return new Map(records.map((record) => [record.id, record]))
  }

  async #write(records: Map<string, UploadRecord>): Promise<void> {
    const beside = `${this.#path}.new`
    await writeFile(beside, JSON.stringify([...records.values()]), { mode: 0o600 })
    await rename(beside, this.#path)
  }
}
