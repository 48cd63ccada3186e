// The upload page: puts its parts together.

import { type JSX, render } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import type { Upload } from '../../src/index.js'
import { settingsOf } from '../shared/settings.js'
import { Sharing, useShared } from './context.js'
import { DropZone } from './dropzone.js'
import { Model, type PageSettings } from './model.js'
import { AskAboutDuplicate } from './question.js'
import { LeftRow, Row } from './row.js'
import { firstLanguage, keepLanguage, sayIn } from './texts.js'
import { TokenField } from './token.js'

/** Rows that are shown at first: browsers are slow with thousands. */
const SHOWN = 100

let language = firstLanguage()
let say = sayIn(language)
let redraw = () => {}
let drawing = false

/** Draws once for all that happens until then. */
function changed(): void {
  if (drawing) return
  drawing = true
  // Also in a tab in the background, which gets no animation frames.
  setTimeout(() => {
    drawing = false
    redraw()
  }, 50)
}

const model = new Model(settingsOf<PageSettings>(), () => say, changed)

function Page(): JSX.Element {
  const [, draw] = useState(0)
  useEffect(() => {
    redraw = () => draw((times) => times + 1)
    void model.recall()
  }, [])
  const { uploads } = model.manager
  useEffect(() => {
    document.documentElement.lang = language
    document.title = titleOf(uploads)
  })
  const [question] = model.questions
  const change = () => {
    language = language === 'en' ? 'de' : 'en'
    say = sayIn(language)
    keepLanguage(language)
    redraw()
  }
  return (
    <Sharing value={{ model, language, say }}>
      <main>
        <h1>{say('title')}</h1>
        <p class="about">{say('about')}</p>
        <TokenField />
        <DropZone />
        <Notes />
        <LeftList />
        <UploadList uploads={uploads} />
      </main>
      <footer>
        <span>tusd-py {model.settings.version}</span>
        <button type="button" class="link" lang={language === 'en' ? 'de' : 'en'} onClick={change}>
          {say('otherLanguage')}
        </button>
      </footer>
      {question ? <AskAboutDuplicate key={question.upload.id} question={question} /> : null}
      <p class="only-heard" role="status">
        {model.announcement}
      </p>
    </Sharing>
  )
}

function titleOf(uploads: readonly Upload[]): string {
  const active = uploads.filter(({ state }) => !['completed', 'cancelled'].includes(state))
  const total = active.reduce((sum, { size }) => sum + size, 0)
  const sent = active.reduce((sum, { progress }) => sum + progress.sent, 0)
  const share = total ? `${Math.floor((100 * sent) / total)} % · ` : ''
  return share + say('title')
}

/** What does not work at the moment, and what did not work. */
function Notes(): JSX.Element {
  const isWaiting = model.manager.uploads.some(({ state }) => state === 'waiting')
  return (
    <>
      {isWaiting && !model.line.online ? <p class="note warn">{say('lineLost')}</p> : null}
      {model.problems.map((sentence) => (
        <p key={sentence} class="note bad" role="alert">
          {sentence}
        </p>
      ))}
    </>
  )
}

function LeftList(): JSX.Element | null {
  const { model, say } = useShared()
  const [shown, setShown] = useState(SHOWN)
  const { left } = model
  if (left.length === 0) return null
  const withHandle = left.filter(({ handle }) => handle !== undefined)
  const goOnAll = async () => {
    for (const each of withHandle) await model.goOn(each)
  }
  return (
    <section aria-labelledby="left-title">
      <div class="line">
        <h2 id="left-title">{say('left')}</h2>
        {withHandle.length > 1 ? (
          <button type="button" onClick={() => void goOnAll()}>
            {say('goOnAll')}
          </button>
        ) : null}
      </div>
      <p class="info">{say('leftAbout')}</p>
      <ul id="left">
        {left.slice(0, shown).map((each) => (
          <LeftRow key={each.id} left={each} />
        ))}
      </ul>
      <More count={left.length - shown} onMore={() => setShown(shown + SHOWN)} />
    </section>
  )
}

const ORDER = ['asking', 'uploading', 'waiting', 'failed', 'paused', 'queued']

/** In their order; of very many, those first that have something to say. */
function arranged(uploads: readonly Upload[]): readonly Upload[] {
  if (uploads.length <= SHOWN) return uploads
  const rank = ({ state }: Upload) => (ORDER.includes(state) ? ORDER.indexOf(state) : ORDER.length)
  return [...uploads].sort((one, other) => rank(one) - rank(other))
}

function UploadList({ uploads }: { uploads: readonly Upload[] }): JSX.Element | null {
  const { model, say } = useShared()
  const [shown, setShown] = useState(SHOWN)
  if (uploads.length === 0) return null
  const done = uploads.filter(({ state }) => state === 'completed').length
  const over = uploads.filter(({ state }) => state === 'completed' || state === 'cancelled').length
  const paused = uploads.filter(({ state }) => state === 'paused')
  const running = uploads.length - over - paused.length
  const resumeAll = () => {
    for (const upload of paused) upload.resume()
  }
  return (
    <section aria-labelledby="uploads-title">
      <div class="line">
        <h2 id="uploads-title">{say('summary', { done, count: uploads.length })}</h2>
        <span class="actions">
          {running > 1 ? (
            <button type="button" onClick={() => model.manager.pause()}>
              {say('pauseAll')}
            </button>
          ) : null}
          {paused.length > 1 ? (
            <button type="button" onClick={resumeAll}>
              {say('resumeAll')}
            </button>
          ) : null}
          {over > 1 ? (
            <button type="button" onClick={() => void model.clear()}>
              {say('clear')}
            </button>
          ) : null}
        </span>
      </div>
      <ul id="uploads">
        {arranged(uploads)
          .slice(0, shown)
          .map((upload) => (
            <Row key={upload.id} upload={upload} />
          ))}
      </ul>
      <More count={uploads.length - shown} onMore={() => setShown(shown + SHOWN)} />
    </section>
  )
}

function More({ count, onMore }: { count: number; onMore: () => void }): JSX.Element | null {
  if (count <= 0) return null
  return (
    <button type="button" onClick={onMore}>
      {say('more', { count })}
    </button>
  )
}

const place = document.getElementById('page')
if (place) render(<Page />, place)
