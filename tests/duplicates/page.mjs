// A page that uploads one file by the lines of the documentation, and reports what it sees, a JSON object a line.
// Arguments: the file's path, options of tus-js-client (JSON), and what the user answers when asked: resume, force, leave.

import { readFile } from 'node:fs/promises'
import { duplicateOf, uploadAsking } from './documented.mjs'

const [path, options, answer] = process.argv.slice(2)
const emit = (event, values = {}) => process.stdout.write(`${JSON.stringify({ event, ...values })}\n`)

const upload = uploadAsking(
  await readFile(path),
  {
    ...JSON.parse(options),
    onAfterResponse(request, response) {
      emit('response', { method: request.getMethod(), status: response.getStatus() })
    },
    onSuccess() {
      emit('success', { url: upload.url })
    },
    onError(error) {
      emit('error', { duplicate: duplicateOf(error) })
    },
  },
  async (duplicate) => {
    emit('asked', { duplicate })
    return answer
  },
)
