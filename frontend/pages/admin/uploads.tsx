// The list of uploads, and one upload.

import { useEffect, useRef, useState } from 'preact/hooks'
import type {
  KeptEvent,
  Moment,
  Session,
  State,
  UploadDetail,
  UploadPage,
  UploadRow,
} from './api.js'
import { contentUrl, get, upload } from './api.js'
import { Problem, useAsk, useLoaded } from './ask.js'
import { EventTable } from './events.js'
import { clock, count, short, since, until, visible } from './format.js'
import { Bar } from './overview.js'
import { type Key, text } from './texts.js'

const STATES: Record<string, Key> = {
  all: 'all',
  unfinished: 'stateUnfinished',
  finished: 'stateFinished',
  part: 'part',
  expired: 'expired',
}
const STATE_NAMES: Record<State, Key> = {
  uploading: 'uploading',
  waiting: 'waiting',
  finished: 'stateFinished',
  part: 'part',
  expired: 'expired',
  unreadable: 'unreadable',
}
const TYPING_MS = 250
const KEPT_DAYS = [7, 30, 365]

export function Badge({ state }: { state: State }) {
  return <span class={`badge ${state}`}>{text(STATE_NAMES[state])}</span>
}

const labelOf = (row: UploadRow): string => visible(row.name ?? short(row.id))

export function Uploads({ session, owner }: { session: Session; owner: string | null }) {
  const [search, setSearch] = useState('')
  const [state, setState] = useState('all')
  const [order, setOrder] = useState('newest')
  const { pages, problem, more, reload } = usePages({ q: search, state, order, owner })
  const rows = pages.flatMap((page) => page.uploads)
  const first = pages[0]
  return (
    <section aria-labelledby="uploads">
      <div class="heading">
        <h1 id="uploads">
          {text('uploads')}{' '}
          {first && first.total !== null && (
            <span class="quiet">{text('total', count(first.total))}</span>
          )}
        </h1>
        {owner !== null ? (
          <p class="chip">
            {text('ownerOnly', owner || text('nobody'))} <a href="#/uploads">{text('allOwners')}</a>
          </p>
        ) : (
          <SearchField
            onSearch={setSearch}
            hint={text(session.shows_metadata ? 'searchHint' : 'searchHintIds')}
          />
        )}
        <label>
          <span class="only-heard">{text('state')}</span>
          <select value={state} onChange={(event) => setState(event.currentTarget.value)}>
            {Object.entries(STATES).map(([name, key]) => (
              <option key={name} value={name}>
                {text(key)}
              </option>
            ))}
          </select>
        </label>
        <label>
          <span class="only-heard">{text('order')}</span>
          <select
            value={order}
            onChange={(event) => setOrder(event.currentTarget.value)}
            disabled={search !== ''}
          >
            <option value="newest">{text('newest')}</option>
            <option value="oldest">{text('oldest')}</option>
          </select>
        </label>
      </div>
      <Problem words={problem} />
      {first && !first.is_whole && <p class="quiet">{text('building')}</p>}
      {first && rows.length === 0 && <p class="quiet">{text('nothingFound')}</p>}
      {rows.length > 0 && <UploadTable rows={rows} session={session} reload={reload} />}
      {pages.at(-1)?.next && (
        <p>
          <button type="button" onClick={more}>
            {text('more')}
          </button>
        </p>
      )}
    </section>
  )
}

export function SearchField({
  onSearch,
  hint,
}: {
  onSearch: (search: string) => void
  hint: string
}) {
  const timer = useRef<number | undefined>(undefined)
  useEffect(() => () => clearTimeout(timer.current), [])
  return (
    <input
      type="search"
      aria-label={text('search')}
      placeholder={hint}
      onInput={(event) => {
        const { value } = event.currentTarget
        clearTimeout(timer.current)
        timer.current = window.setTimeout(() => onSearch(value.trim()), TYPING_MS)
      }}
    />
  )
}

function usePages(query: Record<string, string | null>) {
  const [pages, setPages] = useState<UploadPage[]>([])
  const [problem, setProblem] = useState('')
  const [again, setAgain] = useState(0)
  const key = JSON.stringify(query)
  const load = (after: string | null): Promise<UploadPage> => {
    const { owner, ...rest } = JSON.parse(key) as Record<string, string | null>
    // An empty owner is one, too: of uploads without authentication.
    const path = owner === null ? '/uploads' : `/uploads?owner=${encodeURIComponent(owner ?? '')}`
    return owner === null
      ? get(path, { ...rest, after })
      : get(`${path}&state=${rest.state}${after ? `&after=${encodeURIComponent(after)}` : ''}`)
  }
  useEffect(() => {
    let isWanted = true
    load(null).then(
      (page) => {
        if (!isWanted) return
        setPages([page])
        setProblem('')
      },
      (error) => isWanted && setProblem((error as Error).message),
    )
    return () => {
      isWanted = false
    }
  }, [key, again])
  const more = (): void => {
    load(pages.at(-1)?.next ?? null).then(
      (page) => setPages((known) => [...known, page]),
      (error) => setProblem((error as Error).message),
    )
  }
  return { pages, problem, more, reload: () => setAgain((number) => number + 1) }
}

function UploadTable(props: { rows: UploadRow[]; session: Session; reload: () => void }) {
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>{text('file')}</th>
            <th>{text('owner')}</th>
            <th>{text('state')}</th>
            <th>{text('progress')}</th>
            <th>{text('changed')}</th>
            <th>{text('expires')}</th>
            <th>{text('actions')}</th>
          </tr>
        </thead>
        <tbody>
          {props.rows.map((row) => (
            <tr key={row.id}>
              <td class="name">
                <a href={`#/uploads/${encodeURIComponent(row.id)}`}>{labelOf(row)}</a>
                {row.name && <code class="small">{short(row.id)}</code>}
              </td>
              <td class="name">{row.owner || '–'}</td>
              <td>
                <Badge state={row.state} />
                {row.problem && <span class="small bad">{row.problem}</span>}
              </td>
              <td>
                <Bar offset={row.offset} total={row.size} label={labelOf(row)} />
              </td>
              <td>{row.changed ? since(row.changed) : '–'}</td>
              <td>{row.expires === null ? text('never') : until(row.expires)}</td>
              <td class="buttons">
                <UploadButtons row={row} session={props.session} after={props.reload} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

function UploadButtons(props: {
  row: UploadRow
  session: Session
  after: () => void
  onRemoved?: () => void
}) {
  const { row, session, after } = props
  const { ask, say } = useAsk()
  const label = labelOf(row)
  const order = (): Record<string, unknown> => ({ upload: row.id })
  const copy = async (): Promise<void> => {
    const found = await upload(row.id)
    const base = session.uploads_url || window.location.origin
    const url = URL.canParse(found.path, base) ? new URL(found.path, base).href : found.path
    await navigator.clipboard.writeText(url)
    say(text('copied'))
  }
  return (
    <>
      {row.finished !== null && session.downloads && (
        <a class="button" href={contentUrl(row.id)} download={row.name ?? row.id}>
          {text('download')}
        </a>
      )}
      <button
        type="button"
        onClick={() => copy().catch((problem) => say(text('failed', problem.message), true))}
      >
        {text('copyUrl')}
      </button>
      {row.expires !== null && (
        <button
          type="button"
          onClick={() =>
            ask({
              title: text('extend'),
              ask: text('extendAsk', label),
              days: KEPT_DAYS,
              name: 'extend',
              order: (days) => ({ upload: row.id, seconds: days * 86_400 }),
              after,
            })
          }
        >
          {text('extend')}
        </button>
      )}
      <button
        type="button"
        onClick={() =>
          ask({
            title: text('remove'),
            ask: text('removeAsk', label),
            destroys: true,
            name: 'remove',
            order,
            after: props.onRemoved ?? after,
          })
        }
      >
        {text('remove')}
      </button>
    </>
  )
}

export function OneUpload({ id, session }: { id: string; session: Session }) {
  const { found, problem, reload } = useLoaded<UploadDetail>(() => upload(id), id)
  return (
    <section aria-labelledby="upload">
      <p>
        <a href="#/uploads">← {text('back')}</a>
      </p>
      <h1 id="upload">{found ? labelOf(found) : short(id)}</h1>
      <Problem words={problem} />
      {found && <Detail found={found} session={session} reload={reload} />}
    </section>
  )
}

function Detail({
  found,
  session,
  reload,
}: {
  found: UploadDetail
  session: Session
  reload: () => void
}) {
  const { ask } = useAsk()
  const label = labelOf(found)
  const order = (): Record<string, unknown> => ({ upload: found.id })
  const { fingerprint } = found
  return (
    <>
      <p class="buttons">
        <UploadButtons
          row={found}
          session={session}
          after={reload}
          onRemoved={() => {
            window.location.hash = '#/uploads'
          }}
        />
        {found.finished === null && (
          <button
            type="button"
            onClick={() =>
              ask({
                title: text('endRequest'),
                ask: text('endRequestAsk', label),
                name: 'end-request',
                order,
                after: reload,
              })
            }
          >
            {text('endRequest')}
          </button>
        )}
        {session.revokes && !found.revoked && (
          <button
            type="button"
            onClick={() =>
              ask({
                title: text('revoke'),
                ask: text('revokeAsk', label),
                destroys: true,
                name: 'revoke-upload',
                order,
                after: reload,
              })
            }
          >
            {text('revoke')}
          </button>
        )}
        {session.finds_duplicates && fingerprint && (
          <button
            type="button"
            onClick={() =>
              ask({
                title: text('forget'),
                ask: text('forgetAsk', label),
                destroys: true,
                name: 'forget-fingerprint',
                order: () => ({ upload: found.id, fingerprint }),
                after: reload,
              })
            }
          >
            {text('forget')}
          </button>
        )}
      </p>
      <dl class="facts">
        <dt>Id</dt>
        <dd>
          <code>{found.id}</code>
        </dd>
        <dt>{text('state')}</dt>
        <dd>
          <Badge state={found.state} />{' '}
          {found.revoked && <span class="badge expired">{text('revoked')}</span>}
          {found.problem && <span class="bad"> {found.problem}</span>}
        </dd>
        <dt>{text('owner')}</dt>
        <dd>{found.owner || text('nobody')}</dd>
        <dt>{text('progress')}</dt>
        <dd>
          <Bar offset={found.offset} total={found.size} label={label} />
        </dd>
        {fingerprint && (
          <>
            <dt>{text('fingerprint')}</dt>
            <dd>
              <code>{fingerprint}</code>
            </dd>
          </>
        )}
        {found.parts.length > 0 && (
          <>
            <dt>{text('parts')}</dt>
            <dd>
              {found.parts.slice(0, 100).map((part) => (
                <a key={part} class="part" href={`#/uploads/${encodeURIComponent(part)}`}>
                  {short(part)}
                </a>
              ))}
            </dd>
          </>
        )}
      </dl>
      <h2>{text('timeline')}</h2>
      <ol class="timeline">
        {found.timeline.map((moment) => (
          <li key={`${moment.what}${moment.at}`} class={moment.what}>
            <time dateTime={new Date(moment.at * 1000).toISOString()}>{clock(moment.at)}</time>{' '}
            {text(MOMENTS[moment.what])}{' '}
            {moment.detail && <span class="quiet">{moment.detail}</span>}
          </li>
        ))}
      </ol>
      <h2>{text('metadata')}</h2>
      <Metadata found={found} />
      {found.events.length > 0 && <h2>{text('events')}</h2>}
      <EventsOf events={found.events} reload={reload} />
    </>
  )
}

const MOMENTS: Record<Moment['what'], Key> = {
  created: 'created',
  byte: 'byte',
  finished: 'stateFinished',
  event: 'event',
  'failed-event': 'failed-event',
  expires: 'willExpire',
}

function Metadata({ found }: { found: UploadDetail }) {
  if (found.metadata === null) return <p class="quiet">{text('metadataHidden')}</p>
  const pairs = Object.entries(found.metadata)
  if (pairs.length === 0) return <p class="quiet">{text('noMetadata')}</p>
  return (
    <dl class="facts">
      {pairs.map(([key, value]) => (
        <>
          <dt key={key}>{key}</dt>
          <dd>{visible(value)}</dd>
        </>
      ))}
    </dl>
  )
}

function EventsOf({ events, reload }: { events: KeptEvent[]; reload: () => void }) {
  return events.length > 0 ? <EventTable events={events} reload={reload} /> : null
}
