// Jobs, duplicates, owners, settings and the log.

import type { ComponentChildren } from 'preact'
import { useState } from 'preact/hooks'
import type {
  Actions,
  FingerprintPage,
  Jobs,
  Log,
  OwnerPage,
  Session,
  SettingsPage,
} from './api.js'
import { act, get } from './api.js'
import { Problem, useAsk, useLoaded } from './ask.js'
import { clock, count, duration, short, since, size, until } from './format.js'
import { type Key, text } from './texts.js'
import { SearchField } from './uploads.js'

function Table(props: { columns: Key[]; children: ComponentChildren }) {
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            {props.columns.map((column) => (
              <th key={column}>{text(column)}</th>
            ))}
          </tr>
        </thead>
        <tbody>{props.children}</tbody>
      </table>
    </div>
  )
}

export function JobsPanel() {
  const { found, problem, reload } = useLoaded<Jobs>(() => get('/jobs'), '')
  const { ask, say } = useAsk()
  const sweep = async (kind: 'due' | 'all', title: string): Promise<void> => {
    try {
      const counted = await act('sweep', { kind, dry_run: true })
      ask({
        title,
        ask: text('sweepAsk', text('sweepDry', counted.detail)),
        destroys: true,
        name: 'sweep',
        order: () => ({ kind, dry_run: false }),
        after: reload,
      })
    } catch (error) {
      say(text('failed', (error as Error).message), true)
    }
  }
  return (
    <section aria-labelledby="jobs">
      <div class="heading">
        <h1 id="jobs">{text('jobs')}</h1>
        <button type="button" onClick={() => sweep('due', text('sweepNow'))}>
          {text('sweepNow')}
        </button>
        <button type="button" onClick={() => sweep('all', text('sweepAll'))}>
          {text('sweepAll')}
        </button>
      </div>
      <Problem words={problem} />
      {found && <JobTables found={found} />}
    </section>
  )
}

function JobTables({ found }: { found: Jobs }) {
  return (
    <>
      <h2>{text('queues')}</h2>
      <Table columns={['name', 'queueWaiting', 'queueRunning', 'queueFailed', 'queueOldest']}>
        {found.queues.map((queue) => (
          <tr key={queue.name}>
            <td>{queue.name}</td>
            <td class="number">{count(queue.waiting)}</td>
            <td class="number">{count(queue.running)}</td>
            <td class="number">{count(queue.failed)}</td>
            <td class="number">{queue.oldest === null ? '–' : duration(queue.oldest)}</td>
          </tr>
        ))}
      </Table>
      <h2>{text('workers')}</h2>
      {found.workers.length === 0 && <p class="quiet">{text('none')}</p>}
      {found.workers.length > 0 && (
        <Table columns={['server', 'state', 'heard', 'what']}>
          {found.workers.map((worker) => (
            <tr key={worker.name}>
              <td>
                {worker.host} pid {worker.pid}
              </td>
              <td>{worker.state}</td>
              <td class="number">{text('ago', duration(worker.heard))}</td>
              <td>{worker.job ?? '–'}</td>
            </tr>
          ))}
        </Table>
      )}
      <h2>{text('schedule')}</h2>
      <Table columns={['name', 'next']}>
        {Object.entries(found.schedule).map(([name, at]) => (
          <tr key={name}>
            <td>{name}</td>
            <td>
              {clock(at)} <span class="quiet">{until(at)}</span>
            </td>
          </tr>
        ))}
      </Table>
      <h2>{text('sweeps')}</h2>
      <Table columns={['sweepKind', 'ended', 'took', 'seen', 'removed', 'queueFailed']}>
        {found.sweeps.map((sweep) => (
          <tr key={sweep.kind}>
            <td>{text(sweep.kind === 'due' ? 'due' : 'whole')}</td>
            <td>{since(sweep.ended)}</td>
            <td class="number">{duration(sweep.ended - sweep.began)}</td>
            <td class="number">{count(sweep.seen)}</td>
            <td class="number">{count(sweep.expired)}</td>
            <td class="number">{count(sweep.failed)}</td>
          </tr>
        ))}
      </Table>
    </>
  )
}

const DUPLICATE_STATES: Record<string, Key> = {
  pending: 'pending',
  complete: 'complete',
  ending: 'ending',
}

export function Duplicates({ session }: { session: Session }) {
  const [search, setSearch] = useState('')
  const [after, setAfter] = useState('0')
  const key = JSON.stringify([search, after])
  const { found, problem, reload } = useLoaded<FingerprintPage>(
    () => get('/duplicates', { q: search, after }),
    key,
  )
  const { ask } = useAsk()
  const begin = (wanted: string): void => {
    setSearch(wanted)
    setAfter('0')
  }
  return (
    <section aria-labelledby="duplicates">
      <div class="heading">
        <h1 id="duplicates">{text('duplicates')}</h1>
        <SearchField onSearch={begin} hint={text('duplicatesHint')} />
      </div>
      <Problem words={problem} />
      {!session.finds_duplicates && <p class="quiet">{text('duplicatesOff')}</p>}
      {found && <p class="quiet">{text('refusedToday', count(found.refused))}</p>}
      {found && found.fingerprints.length === 0 && <p class="quiet">{text('nothingFound')}</p>}
      {found && found.fingerprints.length > 0 && (
        <Table columns={['fingerprint', 'state', 'file', 'owner', 'kept', 'until', 'actions']}>
          {found.fingerprints.map((each) => (
            <tr key={`${each.fingerprint}${each.upload}`}>
              <td>
                <code>{short(each.fingerprint)}</code>
              </td>
              <td>{text(DUPLICATE_STATES[each.state] ?? 'pending')}</td>
              <td>
                <a href={`#/uploads/${encodeURIComponent(each.upload)}`}>{short(each.upload)}</a>
              </td>
              <td>{each.owner || '–'}</td>
              <td>{since(each.completed ?? each.created)}</td>
              <td>{until(each.expires)}</td>
              <td class="buttons">
                <button
                  type="button"
                  onClick={() =>
                    ask({
                      title: text('forget'),
                      ask: text('forgetAsk', short(each.upload)),
                      destroys: true,
                      name: 'forget-fingerprint',
                      order: () => ({ fingerprint: each.fingerprint, upload: each.upload }),
                      after: reload,
                    })
                  }
                >
                  {text('forget')}
                </button>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {found?.next && (
        <p>
          <button type="button" onClick={() => setAfter(found.next ?? '0')}>
            {text('more')}
          </button>
        </p>
      )}
    </section>
  )
}

export function Owners({ session }: { session: Session }) {
  const [after, setAfter] = useState('0')
  const { found, problem, reload } = useLoaded<OwnerPage>(() => get('/owners', { after }), after)
  const { ask } = useAsk()
  const hasQuotas = found?.owners.some((each) => each.counted !== null)
  const bytes: Key[] = hasQuotas ? ['bytes', 'counted'] : ['bytes']
  return (
    <section aria-labelledby="owners">
      <div class="heading">
        <h1 id="owners">
          {text('owners')} {found && <span class="quiet">{count(found.total)}</span>}
        </h1>
      </div>
      <Problem words={problem} />
      {found?.max_size && <p class="quiet">{text('limits', size(found.max_size))}</p>}
      {found?.is_counting && <p class="quiet">{text('counting')}</p>}
      {found && found.owners.length === 0 && <p class="quiet">{text('nothingFound')}</p>}
      {found && found.owners.length > 0 && (
        <Table columns={['owner', 'uploads', 'openUploads', ...bytes, 'actions']}>
          {found.owners.map((each) => (
            <tr key={each.owner}>
              <td>
                {each.owner || text('nobody')}{' '}
                {each.revoked !== null && (
                  <span class="badge expired">{`${text('revoked')} ${since(each.revoked)}`}</span>
                )}
              </td>
              <td class="number">{count(each.uploads)}</td>
              <td class="number">
                {count(each.open)}
                {found.quota_uploads !== null && ` / ${count(found.quota_uploads)}`}
              </td>
              <td class="number">{size(each.bytes)}</td>
              {each.counted !== null && (
                <td class="number">
                  {size(each.counted)}
                  {found.quota_bytes !== null && ` / ${size(found.quota_bytes)}`}
                </td>
              )}
              <td class="buttons">
                {each.owner && (
                  <a class="button" href={`#/owners/${encodeURIComponent(each.owner)}`}>
                    {text('show')}
                  </a>
                )}
                {session.revokes && each.owner && (
                  <button
                    type="button"
                    onClick={() =>
                      ask({
                        title: text('revoke'),
                        ask: text('revokeOwnerAsk', each.owner),
                        destroys: true,
                        name: 'revoke-owner',
                        order: () => ({ owner: each.owner }),
                        after: reload,
                      })
                    }
                  >
                    {text('revoke')}
                  </button>
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      {found?.next && (
        <p>
          <button type="button" onClick={() => setAfter(found.next ?? '0')}>
            {text('more')}
          </button>
        </p>
      )}
    </section>
  )
}

const shown = (value: SettingsPage['settings'][number]['value']): string =>
  value === null || value === ''
    ? '–'
    : Array.isArray(value)
      ? value.join(', ') || '–'
      : String(value)

export function SettingsPanel() {
  const { found, problem } = useLoaded<SettingsPage>(() => get('/settings'), '')
  const [isShort, setShort] = useState(true)
  const wanted = found?.settings.filter((each) => !isShort || each.origin !== 'default') ?? []
  return (
    <section aria-labelledby="settings">
      <div class="heading">
        <h1 id="settings">{text('settings')}</h1>
        <label class="choice">
          <input type="checkbox" checked={isShort} onChange={() => setShort(!isShort)} />{' '}
          {text('changedOnly')}
        </label>
      </div>
      <Problem words={problem} />
      <Table columns={['name', 'value', 'origin']}>
        {wanted.map((each) => (
          <tr key={each.name}>
            <td>
              <code title={each.description}>{each.name}</code>
            </td>
            <td class="wrap">{shown(each.value)}</td>
            <td>{each.origin ?? '–'}</td>
          </tr>
        ))}
      </Table>
    </section>
  )
}

export function LogPanel() {
  const log = useLoaded<Log>(() => get('/log'), '')
  const actions = useLoaded<Actions>(() => get('/actions'), '')
  return (
    <section aria-labelledby="log">
      <h1 id="log">{text('log')}</h1>
      <Problem words={log.problem || actions.problem} />
      <h2>{text('lastActions')}</h2>
      {actions.found?.actions.length === 0 && <p class="quiet">{text('noActions')}</p>}
      {actions.found && actions.found.actions.length > 0 && (
        <Table columns={['time', 'who', 'what']}>
          {actions.found.actions.map((each) => (
            <tr key={`${each.at}${each.name}`}>
              <td>{clock(each.at)}</td>
              <td>{each.operator}</td>
              <td class="wrap">
                <strong>{each.name}</strong> {each.detail}
              </td>
            </tr>
          ))}
        </Table>
      )}
      <h2>{text('warnings')}</h2>
      {log.found?.lines.length === 0 && <p class="quiet">{text('noWarnings')}</p>}
      {log.found && log.found.lines.length > 0 && (
        <ol class="lines">
          {log.found.lines.map((line) => (
            <li key={`${line.at}${line.text}`} class={line.level}>
              {line.text}
            </li>
          ))}
        </ol>
      )}
    </section>
  )
}
