// Asks about a duplicate, one question at a time.

import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import type { DuplicateAnswer } from '../../src/index.js'
import { size } from '../shared/format.js'
import { useShared } from './context.js'
import type { Question } from './model.js'

export function AskAboutDuplicate({ question }: { question: Question }): JSX.Element {
  const { model, say, language } = useShared()
  const dialog = useRef<HTMLDialogElement>(null)
  const [forAll, setForAll] = useState(false)
  const { upload, duplicate, url } = question
  useEffect(() => dialog.current?.showModal(), [])
  const answer = (given: DuplicateAnswer) => question.answer(given, forAll)
  const button = (text: string, given: DuplicateAnswer, primary = false) => (
    <button type="button" class={primary ? 'primary' : ''} onClick={() => answer(given)}>
      {text}
    </button>
  )
  const leaveOpen = () => {
    if (url === undefined) return
    if (model.settings.auth === 'none') window.open(url, '_blank', 'noopener')
    else void model.save(url, upload.name)
    answer('give-up')
  }
  const { name } = upload
  const text =
    duplicate.state === 'complete'
      ? say('duplicateComplete', { name })
      : duplicate.canResume
        ? say('duplicatePending', { name, sent: size(duplicate.offset ?? 0, language) })
        : say('duplicateBusy', { name })
  const canOpen = duplicate.state === 'complete' && url !== undefined
  return (
    <dialog
      ref={dialog}
      aria-labelledby="duplicate-title"
      aria-describedby="duplicate-text"
      onCancel={(event) => {
        event.preventDefault()
        answer('give-up')
      }}
    >
      <h2 id="duplicate-title">{say('duplicateTitle')}</h2>
      <p id="duplicate-text">{text}</p>
      <div class="answers">
        {canOpen ? (
          <button type="button" class="primary" onClick={leaveOpen}>
            {say('answerOpen')}
          </button>
        ) : null}
        {duplicate.canResume ? button(say('answerResume'), 'resume', true) : null}
        {button(say('answerForce'), 'force')}
        {button(say('answerLeave'), 'give-up')}
      </div>
      {model.questions.length > 1 ? (
        <label class="same">
          <input
            type="checkbox"
            checked={forAll}
            onChange={({ currentTarget }) => setForAll(currentTarget.checked)}
          />
          {say('answerAll')}
        </label>
      ) : null}
    </dialog>
  )
}
