// Uploads files by an UploadManager under Node, and reports what it says, a JSON object a line. It decides nothing and checks
// nothing.
//
// The first line of standard input is the job (JSON):
//   files           paths, uploaded in this order
//   accessTokens    the first is shown first, the next after one was refused; the last one for ever
//   options         of UploadManager (endpoint, concurrency, retry, chunkSize, refreshEvery, …)
//   metadata        of every upload besides its file's name
//   store           path of a FileStore, or absent
//   attempts        how often in a row something may fail before an upload is given up, or absent
//   answer          about duplicates: resume, force, give-up, or absent
//
// Every further line is a command: pause, resume, restart, cancel (for all uploads), list, discard (what can be resumed),
// offline, online (what there is of a network, as a browser would say), or close.
//
// What it says, each with a key "event":
//   state {name, state, waitingFor, error, url}   progress {name, sent, total, bytesPerSecond, remainingSeconds}
//   renewed {status, token}   asked {duplicate}   access {rejected}   listed {uploads}   cancelled {name, removed}   warning {message}

import { createInterface } from 'node:readline'
import { FileStore, openFile, UploadManager } from '../../frontend/dist/node.js'

const emit = (event, values = {}) =>
  process.stdout.write(`${JSON.stringify({ event, ...values })}\n`)
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const job = JSON.parse((await lines.next()).value)

const listeners = new Set()
const network = {
  online: true,
  onChange(listener) {
    listeners.add(listener)
    return () => listeners.delete(listener)
  },
}
let shown = 0
const manager = new UploadManager({
  ...job.options,
  network,
  ...(job.store ? { store: new FileStore(job.store) } : {}),
  async getAccessToken({ rejected }) {
    if (rejected !== undefined) emit('access', { rejected: true })
    if (rejected === job.accessTokens[shown]) {
      shown = Math.min(shown + 1, job.accessTokens.length - 1)
    }
    return job.accessTokens[shown]
  },
  ...(job.attempts
    ? { shouldRetry: (_error, _upload, failures) => failures < job.attempts }
    : {}),
  ...(job.answer
    ? {
        onDuplicate(duplicate) {
          emit('asked', { duplicate })
          return job.answer
        },
      }
    : {}),
  async fetch(...request) {
    const answer = await fetch(...request)
    const { upload_token: token } = await answer.clone().json().catch(() => ({}))
    emit('renewed', { status: answer.status, token })
    return answer
  },
})
manager.on('warning', (problem) => emit('warning', { message: String(problem) }))
manager.on('progress', (upload) => emit('progress', { name: upload.name, ...upload.progress }))
manager.on('state', ({ name, state, waitingFor, error, url }) => {
  const told = error && {
    kind: error.kind,
    status: error.status,
    code: error.code,
    message: error.message,
    cause: String(error.cause?.cause ?? error.cause ?? ''),
  }
  emit('state', { name, state, waitingFor, error: told, url })
})

for (const path of job.files) await manager.add(await openFile(path), { metadata: job.metadata })

const ended = Promise.all(manager.uploads.map((upload) => upload.finished().catch(() => {})))
if (job.files.length > 0) ended.then(() => job.stay || process.exit(0))

for await (const command of lines) {
  if (command === 'pause') manager.pause()
  if (command === 'resume') for (const upload of manager.uploads) upload.resume()
  if (command === 'restart') for (const upload of manager.uploads) upload.restart()
  if (command === 'discard') {
    for (const { id, name } of await manager.resumable()) {
      emit('cancelled', { name, removed: await manager.discard(id) })
    }
  }
  if (command === 'list') emit('listed', { uploads: await manager.resumable() })
  if (command === 'cancel') {
    for (const upload of manager.uploads) {
      upload.cancel().then((removed) => emit('cancelled', { name: upload.name, removed }))
    }
  }
  if (command === 'offline' || command === 'online') {
    network.online = command === 'online'
    for (const listener of [...listeners]) listener()
  }
  if (command === 'close') {
    await manager.close()
    process.exit(0)
  }
}
