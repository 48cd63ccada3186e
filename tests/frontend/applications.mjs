// A page with Uppy or tus-js-client, each with what this package has for it: `uppy` (the plugin TusdPy), `uppy-tus` (Uppy's own
// Tus plugin with tusOptions), `tus` (tus-js-client with tusOptions). A test says which, and asks what was seen.

import { tusOptions } from '@tusd-py/upload-manager'
import { TusdPy } from '@tusd-py/upload-manager/uppy'
import Uppy from '@uppy/core'
import Tus from '@uppy/tus'
import * as tus from 'tus-js-client'

window.seen = []
window.asked = []
window.tokens = []

const chosen = () => [...document.querySelector('#file').files]
const see = (event, name, more = {}) => window.seen.push({ event, name, ...more })

async function getAccessToken({ rejected }) {
  window.tokens.push(rejected ?? null)
  return (await fetch('access-token')).text()
}

function follow(uppy) {
  uppy.on('upload-success', ({ name }, { uploadURL }) => see('success', name, { url: uploadURL }))
  uppy.on('upload-error', ({ name }, { message }) => see('error', name, { message }))
  uppy.on('upload-progress', ({ name }, { bytesUploaded: sent, bytesTotal: total }) =>
    see('progress', name, { sent, total }),
  )
  uppy.on('file-removed', ({ name }) => see('removed', name))
  window.add = (metadata) => {
    for (const file of chosen()) {
      uppy.addFile({ name: file.name, type: file.type, data: file, meta: metadata })
    }
    void uppy.upload()
  }
  window.uppy = uppy
}

const pages = {
  uppy(options) {
    follow(new Uppy().use(TusdPy, options))
  },
  'uppy-tus'(options) {
    follow(new Uppy().use(Tus, { ...tusOptions(options), chunkSize: options.chunkSize }))
  },
  tus(options) {
    window.add = async (metadata) => {
      for (const file of chosen()) {
        const upload = new tus.Upload(file, {
          ...tusOptions(options),
          chunkSize: options.chunkSize,
          metadata: { filename: file.name, filetype: file.type, ...metadata },
          onSuccess: () => see('success', file.name, { url: upload.url }),
          onError: ({ message }) => see('error', file.name, { message }),
          onProgress: (sent, total) => see('progress', file.name, { sent, total }),
        })
        const [previous] = await upload.findPreviousUploads()
        if (previous) upload.resumeFromPreviousUpload(previous)
        upload.start()
      }
    }
  },
}

window.begin = ({ kind, answer, ...options }) =>
  pages[kind]({
    chunkSize: Number.POSITIVE_INFINITY,
    ...options,
    getAccessToken,
    async onDuplicate(duplicate, { name, filename = name }) {
      window.asked.push({ ...duplicate, filename })
      return answer
    },
  })
window.ready = true
