export type { Protocol } from './attempt.js'
export type { GetAccessToken } from './credentials.js'
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
export type { DuplicateAnswer, Progress, Upload, UploadEvents, UploadState } from './upload.js'
export { type Backoff, browserNetwork, type Network } from './waiting.js'
