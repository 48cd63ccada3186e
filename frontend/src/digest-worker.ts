// The worker of `digest.ts`: is sent a file, answers with its digest, or null if it cannot be read.

import { inPieces } from './digest.js'
import { sourceOf } from './source.js'

addEventListener('message', ({ data }: MessageEvent<Blob>) => {
  inPieces(sourceOf(data)).then(postMessage, () => postMessage(null))
})
