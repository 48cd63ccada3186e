// The operators' page: signing in, navigation, and the stream that keeps the overview up to date.

import { render } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import { settingsOf } from '../shared/settings.js'
import {
  ApiError,
  close,
  follow,
  get,
  type Hour,
  NoCookies,
  openByLink,
  openByToken,
  type Session,
  type Snapshot,
  session,
  whenSignedOut,
} from './api.js'
import { AskBeforeActions } from './ask.js'
import { Events } from './events.js'
import { Duplicates, JobsPanel, LogPanel, Owners, SettingsPanel } from './more.js'
import { Cards, LastHour, LiveTable } from './overview.js'
import { type Key, language, text } from './texts.js'
import { OneUpload, Uploads } from './uploads.js'

const PANELS = [
  'overview',
  'uploads',
  'events',
  'jobs',
  'duplicates',
  'owners',
  'settings',
  'log',
] as const
const VIA: Record<Session['via'], Key> = {
  link: 'viaLink',
  token: 'viaToken',
  header: 'viaHeader',
  application: 'viaApplication',
}

/** As `tusd_py.web.admin.page` writes it. */
const { takesTokens } = settingsOf<{ takesTokens: boolean }>()

/** The secret of a one-time link, which is taken out of the address before anything else. */
function takeCode(): string | null {
  const { hash } = window.location
  if (hash.length < 2 || hash.startsWith('#/')) return null
  window.history.replaceState(null, '', window.location.pathname)
  return hash.slice(1)
}

function useRoute(): string[] {
  const read = (): string[] =>
    window.location.hash.replace(/^#\//, '').split('/').map(decodeURIComponent)
  const [route, setRoute] = useState(read)
  useEffect(() => {
    const changed = (): void => setRoute(read())
    window.addEventListener('hashchange', changed)
    return () => window.removeEventListener('hashchange', changed)
  }, [])
  return route
}

function App({ code }: { code: string | null }) {
  const [who, setWho] = useState<Session | null>(null)
  const [problem, setProblem] = useState<string | null>(null)
  useEffect(() => {
    whenSignedOut(() => {
      setWho(null)
      setProblem(text('sessionEnded'))
    })
    const opened =
      code === null
        ? session()
        : openByLink(code).catch((refused) => session().catch(() => Promise.reject(refused)))
    opened.then(setWho, (refused) => setProblem(reasonOf(refused) ?? ''))
  }, [code])
  const signedOut = (): void => {
    setWho(null)
    setProblem('')
  }
  if (who === null) return problem === null ? null : <SignIn problem={problem} onSession={setWho} />
  return <Page who={who} onSignedOut={signedOut} />
}

/** Why nobody could be signed in, in the page's words; null if there are none for it. */
function reasonOf(problem: unknown): string | null {
  if (problem instanceof NoCookies) return text('noCookies')
  return problem instanceof ApiError && problem.code === 'ERR_LINK_USED' ? text('linkUsed') : null
}

function SignIn({
  problem,
  onSession,
}: {
  problem: string
  onSession: (session: Session) => void
}) {
  const [refused, setRefused] = useState('')
  const show = (event: SubmitEvent): void => {
    event.preventDefault()
    const token = new FormData(event.currentTarget as HTMLFormElement).get('token')
    openByToken(String(token).trim()).then(onSession, (error) =>
      setRefused(reasonOf(error) ?? (error as Error).message),
    )
  }
  return (
    <main class="sign-in">
      <h1>tusd-py</h1>
      {(refused || problem) && (
        <p class="problem" role="alert">
          {refused || problem}
        </p>
      )}
      <p>{text('signInHow')}</p>
      {takesTokens && (
        <form onSubmit={show}>
          <label for="token">{text('signInToken')}</label>
          <input
            id="token"
            name="token"
            type="password"
            autocomplete="off"
            required
            placeholder={text('token')}
          />
          <button type="submit" class="primary">
            {text('signIn')}
          </button>
        </form>
      )}
    </main>
  )
}

function Page({ who, onSignedOut }: { who: Session; onSignedOut: () => void }) {
  const route = useRoute()
  const panel = PANELS.find((each) => each === route[0]) ?? 'overview'
  const [isOpen, setOpen] = useState(true)
  useEffect(() => {
    document.title = `${text(panel)} – tusd-py`
  }, [panel])
  return (
    <AskBeforeActions>
      <button type="button" class="skip" onClick={() => document.getElementById('main')?.focus()}>
        {text('skip')}
      </button>
      <header>
        <strong>tusd-py</strong>
        <nav aria-label={text('title')}>
          {PANELS.map((each) => (
            <a key={each} href={`#/${each}`} aria-current={each === panel ? 'page' : undefined}>
              {text(each)}
            </a>
          ))}
        </nav>
        <span class="who">
          {text('signedIn', who.operator, text(VIA[who.via]))}
          {(who.via === 'link' || who.via === 'token') && (
            <button type="button" onClick={() => close().finally(onSignedOut)}>
              {text('signOut')}
            </button>
          )}
        </span>
      </header>
      {!isOpen && (
        <p class="offline" role="alert">
          {text('offline')}
        </p>
      )}
      <main id="main" tabIndex={-1}>
        {panel === 'overview' && <OverviewPanel who={who} onConnection={setOpen} />}
        {panel === 'uploads' &&
          (route[1] ? (
            <OneUpload id={route.slice(1).join('/')} session={who} />
          ) : (
            <Uploads session={who} owner={null} />
          ))}
        {panel === 'events' && <Events session={who} />}
        {panel === 'jobs' && <JobsPanel />}
        {panel === 'duplicates' && <Duplicates session={who} />}
        {panel === 'owners' &&
          (route[1] ? (
            <Uploads session={who} owner={route.slice(1).join('/')} />
          ) : (
            <Owners session={who} />
          ))}
        {panel === 'settings' && <SettingsPanel />}
        {panel === 'log' && <LogPanel />}
      </main>
      <footer class="quiet">tusd-py {who.version}</footer>
    </AskBeforeActions>
  )
}

const HOUR_MS = 30_000

function OverviewPanel({
  who,
  onConnection,
}: {
  who: Session
  onConnection: (isOpen: boolean) => void
}) {
  const [snapshot, setSnapshot] = useState<Snapshot | null>(null)
  const [hour, setHour] = useState<Hour | null>(null)
  useEffect(() => follow(setSnapshot, onConnection), [onConnection])
  useEffect(() => {
    const load = (): void => {
      get<Hour>('/hour').then(setHour, () => {})
    }
    load()
    const timer = setInterval(load, HOUR_MS)
    return () => clearInterval(timer)
  }, [])
  return (
    <>
      <h1 class="only-heard">{text('overview')}</h1>
      {snapshot && <Cards overview={snapshot.overview} />}
      {hour && <LastHour hour={hour} latest={snapshot?.period ?? null} />}
      {snapshot && <LiveTable live={snapshot.live} session={who} />}
    </>
  )
}

document.documentElement.lang = language
render(<App code={takeCode()} />, document.getElementById('page') ?? document.body)
