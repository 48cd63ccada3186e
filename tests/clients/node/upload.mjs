// Runs one upload with tus-js-client and reports, line by line, what the client sees. It decides nothing and checks
// nothing: the job says what to do, and the test that wrote the job judges the events.
//
// The first line of standard input is the job (JSON):
//   source          {kind: "file" | "buffer" | "stream", path}: what is uploaded. A "stream" hides that it is a file.
//   options         given to tus-js-client as they are (endpoint, uploadUrl, chunkSize, parallelUploads, …)
//   urlStorage      path of a FileUrlStorage, or absent
//   resume          true: continue what findPreviousUploads() returns, if it returns anything
//   holdAt          bytes: hold back the first PATCH at this offset or a later one until the line "continue" arrives
//
// Every further line of standard input is a command:
//   continue        let go what is held back
//   abort           call abort(), then end
//   terminate       call abort(true), which sends DELETE, then end
//   restart         call abort(), and start() on the same object at once
//
// Standard output carries one JSON object a line, each with a key "event":
//   previous {uploads}   url {url}   request {method, url, headers}   response {method, status, headers}
//   progress {sent, total}   chunk {size, accepted, total}   held {offset}   aborted {terminated}
//   success {url, status}   error {message, status}

import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { PassThrough } from 'node:stream'
import tus from 'tus-js-client'

const REPORTED_REQUEST_HEADERS = [
  'Upload-Offset',
  'Upload-Length',
  'Upload-Defer-Length',
  'Upload-Concat',
  'Upload-Metadata',
  'Content-Type',
  'X-HTTP-Method-Override',
]
const REPORTED_RESPONSE_HEADERS = ['Upload-Offset', 'Upload-Length', 'Location', 'Tus-Resumable']

const emit = (event, values = {}) => process.stdout.write(`${JSON.stringify({ event, ...values })}\n`)

const pick = (names, message) =>
  Object.fromEntries(
    names.map((name) => [name, message.getHeader(name)]).filter(([, value]) => value !== undefined),
  )

async function openSource({ kind, path }) {
  switch (kind) {
    case 'file':
      return createReadStream(path)
    case 'buffer':
      return readFile(path)
    case 'stream':
      return createReadStream(path).pipe(new PassThrough())
    default:
      throw new Error(`unknown kind of source: ${kind}`)
  }
}

async function run(job, commands) {
  let held = false
  let letGo
  let finish
  const finished = new Promise((resolve) => {
    finish = resolve
  })

  async function abort({ terminate = false, restart = false }) {
    await upload.abort(terminate)
    emit('aborted', { terminated: terminate })
    if (restart) upload.start()
    else finish()
  }

  async function obey(command) {
    switch (command) {
      case 'continue':
        return letGo()
      case 'abort':
        return abort({})
      case 'terminate':
        return abort({ terminate: true })
      case 'restart':
        return abort({ restart: true })
      default:
        throw new Error(`unknown command: ${command}`)
    }
  }

  const upload = new tus.Upload(await openSource(job.source), {
    ...job.options,
    ...(job.urlStorage ? { urlStorage: new tus.FileUrlStorage(job.urlStorage) } : {}),
    async onBeforeRequest(request) {
      const method = request.getMethod()
      const offset = Number(request.getHeader('Upload-Offset'))
      if (job.holdAt !== undefined && !held && method === 'PATCH' && offset >= job.holdAt) {
        held = true
        const told = new Promise((resolve) => {
          letGo = resolve
        })
        emit('held', { offset })
        await told
      }
      emit('request', { method, url: request.getURL(), headers: pick(REPORTED_REQUEST_HEADERS, request) })
    },
    onAfterResponse(request, response) {
      emit('response', {
        method: request.getMethod(),
        status: response.getStatus(),
        headers: pick(REPORTED_RESPONSE_HEADERS, response),
      })
    },
    onUploadUrlAvailable() {
      emit('url', { url: upload.url })
    },
    onProgress(sent, total) {
      emit('progress', { sent, total })
    },
    onChunkComplete(size, accepted, total) {
      emit('chunk', { size, accepted, total })
    },
    onSuccess({ lastResponse }) {
      emit('success', { url: upload.url, status: lastResponse.getStatus() })
      finish()
    },
    onError(error) {
      emit('error', { message: error.message, status: error.originalResponse?.getStatus() ?? null })
      finish()
    },
  })

  if (job.resume) {
    const uploads = await upload.findPreviousUploads()
    emit('previous', { uploads })
    if (uploads.length > 0) upload.resumeFromPreviousUpload(uploads[0])
  }
  upload.start()
  commands.on('line', (command) => {
    obey(command).catch((error) => {
      emit('error', { message: error.message, status: error.originalResponse?.getStatus() ?? null })
      finish()
    })
  })
  await finished
}

// An upload that goes quiet for ever empties the event loop, and Node would end as if all were well.
process.exitCode = 1
const input = createInterface({ input: process.stdin })
const [job] = await once(input, 'line')
await run(JSON.parse(job), input)
process.exitCode = 0
// No process.exit(): the entry in the URL storage is still being removed when onSuccess is called.
input.close()
process.stdin.destroy()
