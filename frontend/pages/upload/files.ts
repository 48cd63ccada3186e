// Files as people give them: chosen, dropped or pasted, alone or in folders. With the browser's handle where it has one, by which
// a later visit finds the file again.

/** path: with its folders, if it came in one. */
export interface Chosen {
  file: File
  handle?: FileSystemFileHandle | undefined
  path?: string | undefined
}

/** A file or folder that could not be read. */
export type OnUnreadable = (name: string) => void

type FilePicker = (options: { multiple: boolean }) => Promise<FileSystemFileHandle[]>
type FolderPicker = () => Promise<FileSystemDirectoryHandle>
type WithPickers = { showOpenFilePicker?: FilePicker; showDirectoryPicker?: FolderPicker }
type Iterable = FileSystemDirectoryHandle & { values(): AsyncIterable<FileSystemHandle> }
type WithHandle = DataTransferItem & {
  getAsFileSystemHandle?: () => Promise<FileSystemHandle | null>
}

const pickers = globalThis as WithPickers

export const canPickFiles = pickers.showOpenFilePicker !== undefined
export const canPickFolders = pickers.showDirectoryPicker !== undefined

/** The browser's own dialogue, whose handles can be kept. Nothing if it is closed without a choice. */
export async function pickFiles(): Promise<Chosen[]> {
  const handles = (await unlessClosed(pickers.showOpenFilePicker?.({ multiple: true }))) ?? []
  return Promise.all(handles.map(async (handle) => ({ file: await handle.getFile(), handle })))
}

export async function pickFolder(unreadable: OnUnreadable): Promise<Chosen[]> {
  const folder = await unlessClosed(pickers.showDirectoryPicker?.())
  return folder ? filesOfHandle(folder, '', unreadable) : []
}

async function unlessClosed<T>(choice: Promise<T> | undefined): Promise<T | undefined> {
  try {
    return await choice
  } catch (problem) {
    if (problem instanceof DOMException && problem.name === 'AbortError') return undefined
    throw problem
  }
}

/** What an input element has. */
export function filesOfInput(files: FileList | null): Chosen[] {
  return [...(files ?? [])].map((file) => ({ file, path: file.webkitRelativePath || undefined }))
}

/** What was dropped or pasted. Must be called while the event is handled: its items are gone afterwards. */
export async function filesOfTransfer(
  transfer: DataTransfer | null,
  unreadable: OnUnreadable,
): Promise<Chosen[]> {
  const items = [...(transfer?.items ?? [])].filter(({ kind }) => kind === 'file')
  const given = items.map((item: WithHandle) => ({
    handle: item.getAsFileSystemHandle?.().catch(() => null),
    entry: item.webkitGetAsEntry(),
    file: item.getAsFile(),
  }))
  const found: Chosen[] = []
  for (const { handle: coming, entry, file } of given) {
    const handle = await coming
    if (handle) found.push(...(await filesOfHandle(handle, '', unreadable)))
    else if (entry?.isDirectory) found.push(...(await filesOfEntry(entry, unreadable)))
    else if (file) found.push({ file })
  }
  return found
}

async function filesOfHandle(
  handle: FileSystemHandle,
  folder: string,
  unreadable: OnUnreadable,
): Promise<Chosen[]> {
  const path = folder + handle.name
  try {
    if (handle.kind === 'file') {
      const own = handle as FileSystemFileHandle
      return [{ file: await own.getFile(), handle: own, path: folder ? path : undefined }]
    }
    const found: Chosen[] = []
    for await (const inner of (handle as Iterable).values()) {
      found.push(...(await filesOfHandle(inner, `${path}/`, unreadable)))
    }
    return found
  } catch {
    unreadable(path)
    return []
  }
}

async function filesOfEntry(entry: FileSystemEntry, unreadable: OnUnreadable): Promise<Chosen[]> {
  try {
    if (entry.isFile) {
      const file = await new Promise<File>((resolve, reject) =>
        (entry as FileSystemFileEntry).file(resolve, reject),
      )
      return [{ file, path: entry.fullPath.replace(/^\//, '') }]
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader()
    const found: Chosen[] = []
    for (;;) {
      // A hundred at a time, until there are none.
      const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
        reader.readEntries(resolve, reject),
      )
      if (some.length === 0) return found
      for (const inner of some) found.push(...(await filesOfEntry(inner, unreadable)))
    }
  } catch {
    unreadable(entry.fullPath)
    return []
  }
}
