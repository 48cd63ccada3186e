// UploadManager as an uploader of Uppy, in the place of @uppy/tus: Uppy has the files and shows them, the manager uploads them.

import {
  BasePlugin,
  type Body,
  type Meta,
  type PluginOpts,
  type Uppy,
  type UppyFile,
} from '@uppy/core'
import { type Duplicate, UploadError } from './errors.js'
import { UploadManager, type UploadManagerOptions } from './manager.js'
import type { DuplicateAnswer, Upload } from './upload.js'

export * from './index.js'

export interface TusdPyOptions<M extends Meta = Meta, B extends Body = Body>
  extends Omit<UploadManagerOptions, 'onDuplicate' | 'shouldRetry'>,
    PluginOpts {
  /** Which of a file's metadata are sent: all, none (false) or those named. */
  allowedMetaFields?: boolean | string[]
  /** Asks the user about a duplicate. Without it the file fails with the server's sentence about it. */
  onDuplicate?: (
    duplicate: Duplicate,
    file: UppyFile<M, B>,
  ) => DuplicateAnswer | Promise<DuplicateAnswer>
}

/** `uppy.use(TusdPy, { endpoint, getAccessToken, … })` */
export class TusdPy<M extends Meta = Meta, B extends Body = Body> extends BasePlugin<
  TusdPyOptions<M, B>,
  M,
  B
> {
  readonly #files = new WeakMap<Upload, string>()
  #manager: UploadManager | undefined

  constructor(uppy: Uppy<M, B>, options: TusdPyOptions<M, B>) {
    super(uppy, options)
    this.type = 'uploader'
    this.id = options.id ?? 'TusdPy'
  }

  /** Whose events tell what Uppy has no word for: that an upload waits for the network, for instance. */
  get manager(): UploadManager {
    this.#manager ??= this.#create()
    return this.#manager
  }

  override install(): void {
    this.#setResumable(true)
    this.uppy.addUploader(this.#upload)
  }

  override uninstall(): void {
    this.#setResumable(false)
    this.uppy.removeUploader(this.#upload)
    void this.#manager?.close()
    this.#manager = undefined
  }

  #create(): UploadManager {
    const { id: _id, locale: _locale, allowedMetaFields: _fields, onDuplicate, ...rest } = this.opts
    if (!onDuplicate) return new UploadManager(rest)
    return new UploadManager({
      ...rest,
      onDuplicate: (duplicate, upload) =>
        onDuplicate(duplicate, this.uppy.getFile(this.#files.get(upload) ?? '')),
    })
  }

  #setResumable(resumableUploads: boolean): void {
    this.uppy.setState({ capabilities: { ...this.uppy.getState().capabilities, resumableUploads } })
  }

  readonly #upload = async (ids: string[]): Promise<void> => {
    const files = this.uppy
      .getFilesByIds(ids)
      .filter((file) => !file.error && !file.progress.uploadComplete)
    // Those that Uppy's Golden Retriever brought back were started before.
    this.uppy.emit(
      'upload-start',
      files.filter((file) => !file.progress.uploadStarted || !file.isRestored),
    )
    await Promise.all(files.map((file) => this.#uploadFile(file)))
  }

  /** Resolves when the file is uploaded, has failed or is removed; Uppy knows by events which. */
  async #uploadFile(file: UppyFile<M, B>): Promise<void> {
    const removal = this.#whenRemoved(file)
    let upload: Upload | undefined
    try {
      if (file.isRemote || !file.data) {
        throw new UploadError('source', 'only files of this device can be uploaded here')
      }
      const metadata = metadataOf(file, this.opts.allowedMetaFields ?? true)
      upload = await this.manager.add(file.data as Blob, { metadata, start: false })
      this.#files.set(upload, file.id)
      if (removal.removed) await upload.cancel()
      else await this.#follow(file.id, upload)
    } catch (problem) {
      this.#failed(file.id, problem)
    } finally {
      removal.stop()
      if (upload) await this.manager.remove(upload)
    }
  }

  /** Whether the file was removed while it was read for the first time. */
  #whenRemoved({ id }: UppyFile<M, B>): { readonly removed: boolean; stop: () => void } {
    let removed = false
    const onRemoved = (other: UppyFile<M, B>) => {
      if (other.id === id) removed = true
    }
    const onAll = () => {
      removed = true
    }
    this.uppy.on('file-removed', onRemoved)
    this.uppy.on('cancel-all', onAll)
    return {
      get removed() {
        return removed
      },
      stop: () => {
        this.uppy.off('file-removed', onRemoved)
        this.uppy.off('cancel-all', onAll)
      },
    }
  }

  async #follow(id: string, upload: Upload): Promise<void> {
    const stop = [
      upload.on('progress', () => this.#progressed(id, upload)),
      this.#listen('upload-pause', (file, paused) => {
        if (file?.id !== id) return
        if (paused) upload.pause()
        else upload.resume()
      }),
      this.#listen('pause-all', () => upload.pause()),
      this.#listen('resume-all', () => upload.resume()),
      this.#listen('cancel-all', () => void upload.cancel()),
      this.#listen('file-removed', (file) => {
        if (file.id === id) void upload.cancel()
      }),
    ]
    const { isPaused } = this.uppy.getFile(id)
    if (!isPaused) upload.resume()
    try {
      await upload.finished()
      this.#succeeded(id, upload)
    } catch (problem) {
      if (upload.state !== 'cancelled') throw problem
    } finally {
      for (const each of stop) each()
    }
  }

  #listen<Name extends Parameters<Uppy<M, B>['on']>[0]>(
    name: Name,
    listener: Parameters<typeof this.uppy.on<Name>>[1],
  ): () => void {
    this.uppy.on(name, listener)
    return () => void this.uppy.off(name, listener)
  }

  #progressed(id: string, upload: Upload): void {
    const file = this.uppy.getFile(id)
    if (!file) return
    const { sent, total } = upload.progress
    const uploadStarted = file.progress.uploadStarted ?? Date.now()
    this.uppy.emit('upload-progress', file, {
      uploadStarted,
      bytesUploaded: sent,
      bytesTotal: total,
    })
  }

  #succeeded(id: string, { url }: Upload): void {
    this.uppy.emit('upload-success', this.uppy.getFile(id), {
      status: 200,
      body: {} as B,
      ...(url === null ? {} : { uploadURL: url }),
    })
  }

  #failed(id: string, problem: unknown): void {
    const error = problem instanceof Error ? problem : new Error(String(problem))
    const status = problem instanceof UploadError ? problem.status : undefined
    const response = status === undefined ? undefined : { status, body: {} as B }
    this.uppy.emit('upload-error', this.uppy.getFile(id), error, response)
  }
}

/** As @uppy/tus sends them, but without what the file does not have, and `name` and `type` once. */
function metadataOf<M extends Meta, B extends Body>(
  { meta }: UppyFile<M, B>,
  allowed: boolean | string[],
): Record<string, string> {
  const all = meta as Record<string, unknown>
  const keys = Array.isArray(allowed) ? allowed : allowed ? Object.keys(all) : []
  // What is not named here, the manager would take from the file.
  const metadata: Record<string, string> = { filename: '', filetype: '' }
  for (const key of keys) {
    const value = all[key]
    if (value === null || value === undefined) continue
    metadata[key === 'name' ? 'filename' : key === 'type' ? 'filetype' : key] = String(value)
  }
  return metadata
}
