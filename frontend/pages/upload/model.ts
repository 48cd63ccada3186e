// What the page knows and does, without a word of how it looks: the manager, what was left by earlier visits, open questions.

import {
  type Duplicate,
  type DuplicateAnswer,
  defaultStore,
  type Resumable,
  type Upload,
  UploadError,
  UploadManager,
} from '../../src/index.js'
import type { Chosen } from './files.js'
import { Line } from './line.js'
import { Memory } from './memory.js'
import type { Say } from './texts.js'
import { Tokens } from './tokens.js'

/** As `tusd_py.web.pages.upload` writes it. */
export interface PageSettings {
  version: string
  endpoint: string
  refreshUrl: string
  auth: 'none' | 'jwt'
  tokenUrl: string
  maxSize: number
}

/** An upload of an earlier visit. handle: by which its file is found again. */
export interface Left extends Resumable {
  handle: FileSystemFileHandle | undefined
}

/** A question about a duplicate. url: where the upload is, if this browser knows. */
export interface Question {
  upload: Upload
  duplicate: Duplicate
  url: string | undefined
  answer(answer: DuplicateAnswer, forAll: boolean): void
}

/** Uploads of earlier visits whose offsets the server is asked for. */
const MOST_ASKED = 100
/** Milliseconds without progress after which the page looks whether the server is there. */
const STILL = 3_000
const LOOK_EVERY = 1_000
/** Milliseconds between attempts. The server's own Retry-After counts for more; the line is watched apart. */
const RETRY = { min: 500, max: 1_900 }
/** Milliseconds. The line is watched, so this is for connections that die while others live. */
const STALL = 60_000

export class Model {
  readonly manager: UploadManager
  readonly tokens: Tokens
  readonly line: Line
  left: Left[] = []
  questions: Question[] = []
  /** Sentences about what did not work, the latest last. */
  problems: string[] = []
  /** What a screen reader is told. */
  announcement = ''
  readonly #store = defaultStore()
  readonly #memory = new Memory()
  readonly #movedAt = new Map<Upload, number>()
  readonly #urls = new Map<Upload, string>()
  #sameAnswer: DuplicateAnswer | null = null
  #warned = false

  constructor(
    readonly settings: PageSettings,
    readonly say: () => Say,
    readonly onChange: () => void,
  ) {
    const at = (path: string) => new URL(path, document.baseURI)
    this.tokens = new Tokens(settings.tokenUrl, onChange)
    this.line = new Line(at('healthz'))
    this.line.doubted = () => this.#doubts()
    this.line.onChange(() => {
      this.announcement = this.say()(this.line.online ? 'lineBack' : 'lineLost')
      onChange()
    })
    this.manager = new UploadManager({
      endpoint: at(settings.endpoint),
      refreshUrl: at(settings.refreshUrl),
      network: this.line,
      store: this.#store,
      retry: RETRY,
      stallTimeout: STALL,
      onDuplicate: (duplicate, upload) => this.#ask(duplicate, upload),
      ...(settings.auth === 'jwt' ? { getAccessToken: this.tokens.get } : {}),
    })
    this.manager.on('added', onChange)
    this.manager.on('progress', (upload) => {
      this.#movedAt.set(upload, Date.now())
      onChange()
    })
    this.manager.on('state', (upload) => this.#changed(upload))
    this.manager.on('warning', () => this.#warn())
    this.manager.on('released', () => void this.recall())
    // Other tabs begin, finish and leave uploads meanwhile.
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) void this.recall()
    })
    setInterval(() => this.#doubts() && this.line.look(), LOOK_EVERY)
  }

  /** Looks for what earlier visits left. */
  async recall(): Promise<void> {
    const before = new Map(this.left.map((each) => [each.id, each]))
    const left = await this.manager.resumable()
    const handles = await this.#memory.handles().catch(() => new Map())
    const begun = new Set(this.manager.uploads.map(({ id }) => id))
    this.left = left
      .filter(({ id }) => !begun.has(id))
      .map((each) => before.get(each.id) ?? { ...each, handle: handles.get(each.id) })
    this.onChange()
    // Handles of uploads that are over, also elsewhere.
    const known = new Set((await this.#store.list().catch(() => [])).map(({ id }) => id))
    const here = new Set(this.manager.uploads.map(({ id }) => id))
    for (const id of handles.keys()) {
      if (!known.has(id) && !here.has(id)) await this.#memory.forgetHandle(id)
    }
    await this.#askOffsets(this.left.filter(({ id }) => !before.has(id)))
  }

  /** The server knows better than the browser how much has arrived. */
  async #askOffsets(left: Left[]): Promise<void> {
    if (this.settings.auth === 'jwt' && !this.tokens.has) return
    for (const each of left.slice(0, MOST_ASKED)) {
      const headers: Record<string, string> = { 'Tus-Resumable': '1.0.0' }
      try {
        if (this.settings.auth === 'jwt') {
          headers.Authorization = `Bearer ${await this.tokens.get({})}`
        }
        const answer = await fetch(each.url, { method: 'HEAD', headers })
        const offset = Number(answer.headers.get('Upload-Offset') ?? Number.NaN)
        if (answer.ok && Number.isSafeInteger(offset)) each.offset = offset
      } catch {
        // The browser's own number does.
        return
      }
      this.onChange()
    }
  }

  async add(chosen: Chosen[]): Promise<void> {
    if (chosen.length === 0) return
    // An answer for all is one for all that were given with it.
    this.#sameAnswer = null
    const { length: count } = chosen
    this.announcement = this.say()(count === 1 ? 'saidAddedOne' : 'saidAdded', { count })
    for (const { file, handle, path } of chosen) {
      const metadata = path === undefined ? {} : { relativePath: path }
      await this.#try(file.name, async () => {
        const upload = await this.manager.add(file, { metadata })
        this.left = this.left.filter(({ id }) => id !== upload.id)
        await this.#keep(upload, handle)
      })
    }
  }

  /** Goes on with an upload of an earlier visit by its handle; the browser asks the user if it may read the file. */
  async goOn(left: Left): Promise<void> {
    const { handle } = left
    if (!handle) return
    const mayRead = handle as FileSystemFileHandle & {
      requestPermission?: (what: { mode: 'read' }) => Promise<PermissionState>
    }
    const permission = await mayRead.requestPermission?.({ mode: 'read' }).catch(() => 'denied')
    if (permission !== undefined && permission !== 'granted') {
      this.#problem(this.say()('errorPermission', { name: left.name }))
      return
    }
    await this.#try(left.name, async () => this.#resume(left, await handle.getFile(), handle))
  }

  /** The same with the file that was chosen again. */
  async goOnWith(left: Left, { file, handle }: Chosen): Promise<void> {
    try {
      await this.#resume(left, file, handle)
    } catch (problem) {
      if (!(problem instanceof UploadError && problem.kind === 'source')) {
        this.#problem(`${file.name}: ${this.why(problem)}`)
      } else this.#problem(this.say()('errorOtherFile', { name: file.name }))
    }
  }

  async discard(left: Left): Promise<void> {
    this.left = this.left.filter((each) => each !== left)
    this.onChange()
    await this.#try(left.name, async () => {
      await this.manager.discard(left.id)
      await this.#memory.forgetHandle(left.id)
    })
  }

  /** Takes off the list what is over. */
  async clear(): Promise<void> {
    const over = this.manager.uploads.filter(({ state }) =>
      ['completed', 'cancelled'].includes(state),
    )
    for (const upload of over) await this.takeOff(upload)
  }

  async takeOff(upload: Upload): Promise<void> {
    await this.manager.remove(upload)
    this.onChange()
  }

  /** Where to open an upload, or the one that it is a duplicate of. */
  urlOf(upload: Upload): string | null {
    if (upload.state === 'completed') return upload.url
    return upload.state === 'failed' ? (this.#urls.get(upload) ?? null) : null
  }

  /** Fetches a finished upload with the user's token, which a link could not show, and saves it. */
  async save(url: string, name: string): Promise<void> {
    try {
      const token = await this.tokens.get({})
      const answer = await fetch(url, { headers: { Authorization: `Bearer ${token}` } })
      if (!answer.ok) {
        this.#problem(this.say()('errorOpen', { name, status: answer.status }))
        return
      }
      const local = URL.createObjectURL(await answer.blob())
      Object.assign(document.createElement('a'), { href: local, download: name }).click()
      setTimeout(() => URL.revokeObjectURL(local), 60_000)
    } catch (problem) {
      this.#problem(`${name}: ${this.why(problem)}`)
    }
  }

  /** Why something failed, in the user's words. */
  why(problem: unknown): string {
    const say = this.say()
    if (!(problem instanceof UploadError)) return say('errorRejected', { detail: String(problem) })
    switch (problem.kind) {
      case 'unauthorized':
        return say('errorUnauthorized')
      case 'forbidden':
        return say('errorForbidden')
      case 'gone':
        return say('errorGone')
      case 'duplicate':
        return say('errorDuplicate')
      case 'too-large':
        // Other limits than that of a file: the server says which.
        if (problem.code && problem.code !== 'ERR_MAX_SIZE_EXCEEDED') break
        return say('errorTooLarge')
      case 'unsupported':
        return say('errorUnsupported')
      case 'source':
        return say('errorSource')
      case 'elsewhere':
        return say('errorElsewhere')
      case 'network':
        return say('errorNetwork')
      case 'rejected':
        break
    }
    return say('errorRejected', { detail: problem.message })
  }

  unreadable(name: string): void {
    this.#problem(this.say()('errorFolder', { name }))
  }

  async #resume(left: Left, file: File, handle: FileSystemFileHandle | undefined): Promise<void> {
    if (!(await this.#isUnfinished(left))) {
      this.#problem(this.say()('errorOver', { name: left.name }))
      await this.recall()
      return
    }
    const upload = await this.manager.resume(left.id, file)
    this.left = this.left.filter((each) => each !== left)
    await this.#keep(upload, handle)
    this.onChange()
  }

  /** Whether it is still to be gone on with; another tab may have done so. */
  async #isUnfinished({ id }: Left): Promise<boolean> {
    return (await this.#store.list()).some((each) => each.id === id && !each.cancelled)
  }

  async #keep(upload: Upload, handle: FileSystemFileHandle | undefined): Promise<void> {
    if (handle === undefined || ['completed', 'cancelled'].includes(upload.state)) return
    await this.#memory.keepHandle(upload.id, handle).catch(() => this.#warn())
    // Browsers remove what pages keep when the disk is full, unless they are asked not to.
    void navigator.storage?.persist?.().catch(() => false)
  }

  async #try(name: string, work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (problem) {
      this.#problem(`${name}: ${this.why(problem)}`)
    }
  }

  #problem(sentence: string): void {
    this.problems = [...this.problems, sentence].slice(-5)
    this.onChange()
  }

  #warn(): void {
    if (this.#warned) return
    this.#warned = true
    this.#problem(this.say()('errorStorage'))
  }

  #changed(upload: Upload): void {
    const { name, state, error } = upload
    this.#movedAt.set(upload, Date.now())
    const say = this.say()
    if (state === 'completed') {
      this.announcement = say('saidDone', { name })
      if (upload.url) void this.#memory.keepFinished(keyOf(upload), upload.url).catch(() => {})
    }
    if (state === 'failed') this.announcement = say('saidFailed', { name, why: this.why(error) })
    if (state === 'completed' || state === 'cancelled') {
      this.#movedAt.delete(upload)
      void this.#memory.forgetHandle(upload.id).catch(() => {})
    }
    if (state === 'waiting') this.line.look()
    this.questions = this.questions.filter((each) => each.upload !== upload || state === 'asking')
    this.onChange()
  }

  #doubts(): boolean {
    // Then it is the user who is waited for.
    if (this.tokens.needed) return false
    const now = Date.now()
    return this.manager.uploads.some((upload) => {
      if (upload.state === 'waiting') return true
      return upload.state === 'uploading' && now - (this.#movedAt.get(upload) ?? now) > STILL
    })
  }

  async #ask(duplicate: Duplicate, upload: Upload): Promise<DuplicateAnswer> {
    const url = await this.#memory.finishedAt(keyOf(upload)).catch(() => undefined)
    if (url !== undefined && duplicate.state === 'complete') this.#urls.set(upload, url)
    const same = this.#sameAnswer
    if (same !== null && (same !== 'resume' || duplicate.canResume)) return same
    return new Promise((resolve) => {
      const question: Question = {
        upload,
        duplicate,
        url,
        answer: (answer, forAll) => {
          if (forAll) this.#sameAnswer = answer
          const answered = forAll
            ? this.questions.filter((each) => answer !== 'resume' || each.duplicate.canResume)
            : [question]
          this.questions = this.questions.filter((each) => !answered.includes(each))
          for (const each of answered) if (each !== question) each.answer(answer, false)
          resolve(answer)
          this.onChange()
        },
      }
      this.questions = [...this.questions, question]
      this.onChange()
    })
  }
}

/** What a file is known by once it is uploaded: its content, and the folders that it came in. */
function keyOf(upload: Upload): string {
  return `${upload.fingerprint} ${upload.metadata.relativePath ?? ''}`
}
