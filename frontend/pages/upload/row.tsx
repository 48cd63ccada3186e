// One upload of the list, and one that an earlier visit left.

import type { ComponentChildren, JSX, TargetedEvent } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import type { Upload } from '../../src/index.js'
import { duration, size } from '../shared/format.js'
import { useShared } from './context.js'
import { canPickFiles, filesOfInput, pickFiles } from './files.js'
import type { Left } from './model.js'
import type { Texts } from './texts.js'

const OVER = ['completed', 'cancelled']

export function Row({ upload }: { upload: Upload }): JSX.Element {
  const { model, say } = useShared()
  const [asking, setAsking] = useState(false)
  const { name, state, error } = upload
  const { sent, total } = upload.progress
  const isDuplicate = state === 'failed' && error?.kind === 'duplicate'
  const isAsking = asking && !OVER.includes(state)
  const cancel = () => (sent > 0 ? setAsking(true) : void upload.cancel())
  return (
    <li class={`upload ${isDuplicate ? 'duplicate' : state}`} data-state={state}>
      <Name name={name} path={upload.metadata.relativePath}>
        {isAsking ? null : <Actions upload={upload} onCancel={cancel} />}
      </Name>
      {OVER.includes(state) || isDuplicate ? null : <Bar name={name} sent={sent} total={total} />}
      <p class="info">
        <Info upload={upload} />
      </p>
      {isAsking ? (
        <Confirm
          question={say('askRemove', { name })}
          onYes={() => void upload.cancel()}
          onNo={() => setAsking(false)}
        />
      ) : null}
      <Links upload={upload} url={model.urlOf(upload)} />
    </li>
  )
}

function Name(props: {
  name: string
  path?: string | undefined
  children?: ComponentChildren
}): JSX.Element {
  const folder = props.path?.slice(0, -props.name.length)
  return (
    <div class="line">
      <span class="name" title={props.path ?? props.name}>
        {folder ? <bdi class="folder">{folder}</bdi> : null}
        <bdi>{props.name}</bdi>
      </span>
      <span class="actions">{props.children}</span>
    </div>
  )
}

function Bar({ name, sent, total }: { name: string; sent: number; total: number }): JSX.Element {
  return <progress aria-label={name} value={total ? sent : 1} max={total || 1} />
}

function Actions(props: { upload: Upload; onCancel: () => void }): JSX.Element | null {
  const { model, say } = useShared()
  const { upload } = props
  const { name, state, error } = upload
  const button = (text: string, onClick: () => void) => (
    <button type="button" aria-label={`${text}: ${name}`} onClick={onClick}>
      {text}
    </button>
  )
  const takeOff = button(say('hide'), () => void model.takeOff(upload))
  if (OVER.includes(state)) return takeOff
  const cancel = button(say('cancel'), props.onCancel)
  if (state === 'paused') {
    return (
      <>
        {button(say('resume'), () => upload.resume())}
        {cancel}
      </>
    )
  }
  if (state !== 'failed') {
    return (
      <>
        {button(say('pause'), () => upload.pause())}
        {cancel}
      </>
    )
  }
  if (error?.kind === 'gone') {
    return (
      <>
        {button(say('restart'), () => upload.restart())}
        {takeOff}
      </>
    )
  }
  return (
    <>
      {button(say('retry'), () => upload.resume())}
      {error?.kind === 'duplicate' || upload.url === null ? takeOff : cancel}
    </>
  )
}

function Info({ upload }: { upload: Upload }): JSX.Element {
  const { model, say, language } = useShared()
  const { state, error, progress } = upload
  const { sent, total, bytesPerSecond, remainingSeconds } = progress
  const parts: string[] = []
  if (model.tokens.needed && (state === 'uploading' || state === 'waiting')) {
    parts.push(say('waitingToken'))
  } else if (state === 'waiting') {
    parts.push(say(whyWaiting(upload)))
  } else if (state === 'failed') parts.push(model.why(error))
  else parts.push(say(state))
  if (OVER.includes(state) || error?.kind === 'duplicate') parts.push(size(total, language))
  else {
    parts.push(say('of', { sent: size(sent, language), total: size(total, language) }))
    if (bytesPerSecond !== null) {
      parts.push(say('perSecond', { speed: size(bytesPerSecond, language) }))
    }
    if (remainingSeconds !== null) parts.push(say('timeLeft', { time: duration(remainingSeconds) }))
  }
  return <>{parts.join(' · ')}</>
}

function whyWaiting({ waitingFor, error }: Upload): keyof Texts {
  if (waitingFor === 'network' && !navigator.onLine) return 'waitingLine'
  if (error?.status === 507) return 'full'
  if (error?.code === 'ERR_TOO_MANY_UPLOADS') return 'tooMany'
  return error?.status !== undefined && error.status < 500 ? 'busy' : 'waitingServer'
}

function Links({ upload, url }: { upload: Upload; url: string | null }): JSX.Element | null {
  const { model, say } = useShared()
  const [copied, setCopied] = useState(false)
  if (url === null) return null
  const copy = async () => {
    await navigator.clipboard.writeText(url)
    setCopied(true)
  }
  return (
    <p class="links">
      {model.settings.auth === 'none' ? (
        <a href={url} target="_blank" rel="noopener" aria-label={`${say('open')}: ${upload.name}`}>
          {say('open')}
        </a>
      ) : (
        <button type="button" class="link" onClick={() => void model.save(url, upload.name)}>
          {say('save')}
        </button>
      )}
      {navigator.clipboard ? (
        <button type="button" class="link" onClick={() => void copy()}>
          {say(copied ? 'copied' : 'copyLink')}
        </button>
      ) : null}
    </p>
  )
}

/** Asks before bytes are removed; the answer that keeps them has the focus. */
function Confirm(props: { question: string; onYes: () => void; onNo: () => void }): JSX.Element {
  const { say } = useShared()
  const no = useRef<HTMLButtonElement>(null)
  useEffect(() => no.current?.focus(), [])
  return (
    <div class="confirm" role="alertdialog" aria-label={props.question}>
      <span>{props.question}</span>
      <span class="actions">
        <button type="button" ref={no} onClick={props.onNo}>
          {say('noKeep')}
        </button>
        <button type="button" class="danger" onClick={props.onYes}>
          {say('yesRemove')}
        </button>
      </span>
    </div>
  )
}

export function LeftRow({ left }: { left: Left }): JSX.Element {
  const { model, say, language } = useShared()
  const [asking, setAsking] = useState(false)
  const input = useRef<HTMLInputElement>(null)
  const { name, offset } = left
  const choose = async () => {
    if (!canPickFiles) {
      input.current?.click()
      return
    }
    const [chosen] = await pickFiles()
    if (chosen) await model.goOnWith(left, chosen)
  }
  const given = async ({ currentTarget }: TargetedEvent<HTMLInputElement>) => {
    const [chosen] = filesOfInput(currentTarget.files)
    if (chosen) await model.goOnWith(left, chosen)
  }
  const goOn = say(left.handle ? 'goOn' : 'chooseAgain')
  return (
    <li class="upload left">
      <Name name={name} path={left.metadata.relativePath}>
        {asking ? null : (
          <>
            <button
              type="button"
              class="primary"
              aria-label={`${goOn}: ${name}`}
              onClick={() => void (left.handle ? model.goOn(left) : choose())}
            >
              {goOn}
            </button>
            <button
              type="button"
              aria-label={`${say('remove')}: ${name}`}
              onClick={() => setAsking(true)}
            >
              {say('remove')}
            </button>
          </>
        )}
      </Name>
      <input
        type="file"
        hidden
        ref={input}
        aria-label={goOn}
        onChange={(event) => void given(event)}
      />
      <Bar name={name} sent={offset} total={left.size} />
      <p class="info">
        {say('arrived', { sent: size(offset, language), total: size(left.size, language) })}
      </p>
      {asking ? (
        <Confirm
          question={say('askRemove', { name })}
          onYes={() => void model.discard(left)}
          onNo={() => setAsking(false)}
        />
      ) : null}
    </li>
  )
}
