export type { Protocol } from './attempt.js'
export type { GetAccessToken } from './credentials.js'
export type { DigestOptions } from './digest.js'
export { type Duplicate, type ErrorKind, UploadError } from './errors.js'
export {
  type AddOptions,
  type ManagerEvents,
  type Resumable,
  UploadManager,
  type UploadManagerOptions,
} from './manager.js'
export { fingerprintOf, type Source, sourceOf } from './source.js'
export {
  defaultStore,
  IndexedDBStore,
  MemoryStore,
  type UploadRecord,
  type UploadStore,
} from './store.js'
export { type TusOptions, type TusOptionsInput, tusOptions } from './tus.js'
export type { DuplicateAnswer, Progress, Upload, UploadEvents, UploadState } from './upload.js'
export { type Backoff, browserNetwork, type Network } from './waiting.js'
