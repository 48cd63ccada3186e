// Where files come from: dropped anywhere on the page, chosen, or pasted.

import type { JSX, TargetedEvent } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { size } from '../shared/format.js'
import { useShared } from './context.js'
import {
  type Chosen,
  canPickFiles,
  canPickFolders,
  filesOfInput,
  filesOfTransfer,
  pickFiles,
  pickFolder,
} from './files.js'

export function DropZone(): JSX.Element {
  const { model, say, language } = useShared()
  const [over, setOver] = useState(false)
  const files = useRef<HTMLInputElement>(null)
  const folder = useRef<HTMLInputElement>(null)
  const unreadable = (name: string) => model.unreadable(name)
  const add = (coming: Promise<Chosen[]>) =>
    void coming.then((chosen) => model.add(chosen)).catch(() => unreadable(''))

  useEffect(() => {
    const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false
    const listeners: [string, (event: Event) => void][] = [
      [
        'dragover',
        (event) => {
          if (!hasFiles(event as DragEvent)) return
          event.preventDefault()
          setOver(true)
        },
      ],
      ['dragleave', (event) => (event as DragEvent).relatedTarget === null && setOver(false)],
      [
        'drop',
        (event) => {
          event.preventDefault()
          setOver(false)
          add(filesOfTransfer((event as DragEvent).dataTransfer, unreadable))
        },
      ],
      [
        'paste',
        (event) => add(filesOfTransfer((event as ClipboardEvent).clipboardData, unreadable)),
      ],
    ]
    for (const [name, listener] of listeners) document.addEventListener(name, listener)
    return () => {
      for (const [name, listener] of listeners) document.removeEventListener(name, listener)
    }
  }, [])

  const given = ({ currentTarget }: TargetedEvent<HTMLInputElement>) => {
    const chosen = filesOfInput(currentTarget.files)
    // So that the same file can be chosen twice.
    currentTarget.value = ''
    void model.add(chosen)
  }
  const { maxSize } = model.settings
  return (
    <section class={over ? 'drop over' : 'drop'} aria-label={say('chooseFiles')}>
      <p>
        <strong>{say('drop')}</strong> {say('paste')}
      </p>
      <p class="choices">
        <button
          type="button"
          class="primary"
          onClick={() => (canPickFiles ? add(pickFiles()) : files.current?.click())}
        >
          {say('chooseFiles')}
        </button>
        <button
          type="button"
          onClick={() => (canPickFolders ? add(pickFolder(unreadable)) : folder.current?.click())}
        >
          {say('chooseFolder')}
        </button>
      </p>
      {maxSize > 0 ? <p class="info">{say('largest', { size: size(maxSize, language) })}</p> : null}
      <input id="files" type="file" multiple hidden ref={files} onChange={given} />
      <input
        id="folder"
        type="file"
        hidden
        ref={(element) => {
          element?.setAttribute('webkitdirectory', '')
          folder.current = element
        }}
        onChange={given}
      />
    </section>
  )
}
