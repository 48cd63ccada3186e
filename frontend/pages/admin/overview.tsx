// The state of the instance, the last hour, and what is being received: all of it from the stream.

import { useState } from 'preact/hooks'
import type { Body, Hour, Live, Overview, Period, Session } from './api.js'
import { useAsk } from './ask.js'
import { count, duration, short, size, visible } from './format.js'
import { problemText, text } from './texts.js'

/** Rows of what is being received that are drawn every second. */
const MOST_ROWS = 100

function Card(props: { name: string; value: string; below: string; mood?: 'good' | 'bad' | '' }) {
  return (
    <div class="card">
      <dt>{props.name}</dt>
      <dd>
        <strong class={props.mood ?? ''}>{props.value}</strong>
        <span class="quiet">{props.below}</span>
      </dd>
    </div>
  )
}

const known = (value: number | null): string => (value === null ? '–' : count(value))

export function Cards({ overview }: { overview: Overview }) {
  const { problems, scheduler, spool } = overview
  const space =
    spool === null
      ? overview.reserve
        ? text('reserve', size(overview.reserve))
        : text('noReserve')
      : text('spool', size(spool))
  return (
    <>
      <dl class="cards">
        <Card
          name={text('ready')}
          value={overview.ready ? '✓' : '✗'}
          mood={overview.ready ? 'good' : 'bad'}
          below={overview.ready ? text('storeOk') : text('notReady')}
        />
        <Card
          name={text('receiving')}
          value={count(overview.receiving)}
          below={text('connections', count(overview.connections))}
        />
        <Card
          name={text('rate')}
          value={text('perSecond', size(overview.rate))}
          below={`Redis: ${overview.redis}`}
        />
        <Card
          name={text('unfinished')}
          value={known(overview.unfinished)}
          below={text('dueNow', known(overview.due))}
        />
        <Card
          name={text('finished')}
          value={known(overview.finished_hour)}
          below={text('finishedDay', known(overview.finished_day))}
        />
        <Card
          name={text('free')}
          value={overview.free === null ? text('unlimited') : size(overview.free)}
          below={space}
        />
        <Card
          name={text('workers')}
          value={known(overview.workers)}
          below={scheduler === null ? text('noScheduler') : text('scheduler', duration(scheduler))}
        />
        <Card
          name={text('problems')}
          value={problems.length ? count(problems.length) : text('none')}
          mood={problems.length ? 'bad' : 'good'}
          below=""
        />
      </dl>
      {problems.length > 0 && (
        <ul class="problems">
          {problems.map((each) => (
            <li key={each.code}>{problemText(each.code, each.detail, each.count)}</li>
          ))}
        </ul>
      )}
      {!overview.list_is_whole && overview.redis === 'ok' && (
        <p class="quiet">{text('building')}</p>
      )}
    </>
  )
}

const WIDTH = 240
const HEIGHT = 48

function Spark(props: { name: string; values: number[]; show: (total: number) => string }) {
  const most = Math.max(1, ...props.values)
  const step = WIDTH / Math.max(1, props.values.length - 1)
  const points = props.values.map((value, at) => {
    const height = HEIGHT - 2 - (value / most) * (HEIGHT - 6)
    return `${(at * step).toFixed(1)},${height.toFixed(1)}`
  })
  const total = props.values.reduce((sum, value) => sum + value, 0)
  const label = text('sparkTotal', props.show(total))
  return (
    <figure class="spark">
      <figcaption>{props.name}</figcaption>
      <svg
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`${props.name}: ${label}`}
      >
        <polygon points={`0,${HEIGHT} ${points.join(' ')} ${WIDTH},${HEIGHT}`} />
        <polyline points={points.join(' ')} />
      </svg>
      <span class="quiet">{label}</span>
    </figure>
  )
}

export function LastHour({ hour, latest }: { hour: Hour; latest: Period | null }) {
  const periods = latest ? [...hour.periods.slice(0, -1), latest] : hour.periods
  const of = (name: keyof Period): number[] => periods.map((each) => each[name])
  return (
    <section aria-labelledby="hour">
      <h2 id="hour">{text('lastHour')}</h2>
      <div class="sparks">
        <Spark name={text('sparkBytes')} values={of('bytes')} show={size} />
        <Spark name={text('sparkCreated')} values={of('created')} show={count} />
        <Spark name={text('sparkFinished')} values={of('finished')} show={count} />
        <Spark name={text('sparkRefused')} values={of('refused')} show={count} />
      </div>
    </section>
  )
}

const ORDERS: Record<
  'longest' | 'fastest' | 'silentest',
  ((one: Body, other: Body) => number) | null
> = {
  longest: null,
  fastest: (one, other) => other.rate - one.rate,
  silentest: (one, other) => other.silent - one.silent,
}
type LiveOrder = keyof typeof ORDERS

export function Bar({
  offset,
  total,
  label,
}: {
  offset: number
  total: number | null
  label: string
}) {
  const words = total === null ? size(offset) : text('of', size(offset), size(total))
  return (
    <>
      {total !== null && (
        <progress max={Math.max(1, total)} value={total ? offset : 1} aria-label={label} />
      )}
      <span class="small">{words}</span>
    </>
  )
}

export function LiveTable({ live, session }: { live: Live; session: Session }) {
  const [order, setOrder] = useState<LiveOrder>('longest')
  const compare = ORDERS[order]
  const sorted = compare ? [...live.bodies].sort(compare) : live.bodies
  const shown = sorted.slice(0, MOST_ROWS)
  return (
    <section aria-labelledby="live">
      <div class="heading">
        <h2 id="live">
          {text('live')} <span class="quiet">{count(live.total)}</span>
        </h2>
        <label>
          <span class="only-heard">{text('order')}</span>
          <select
            value={order}
            onChange={(event) => setOrder(event.currentTarget.value as LiveOrder)}
          >
            {(Object.keys(ORDERS) as LiveOrder[]).map((each) => (
              <option key={each} value={each}>
                {text(each)}
              </option>
            ))}
          </select>
        </label>
      </div>
      {shown.length === 0 ? (
        <p class="quiet">{text('nothingLive')}</p>
      ) : (
        <div class="scroll">
          <table>
            <thead>
              <tr>
                <th>{text('file')}</th>
                <th>{text('owner')}</th>
                <th>{text('progress')}</th>
                <th>{text('speed')}</th>
                <th>{text('left')}</th>
                <th>{text('silent')}</th>
                <th>{text('client')}</th>
                <th>{text('server')}</th>
                <th>{text('actions')}</th>
              </tr>
            </thead>
            <tbody>
              {shown.map((body) => (
                <LiveRow key={body.id} body={body} session={session} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {shown.length > 0 && live.total > shown.length && (
        <p class="quiet">{text('someShown', count(shown.length), count(live.total))}</p>
      )}
    </section>
  )
}

function LiveRow({ body, session }: { body: Body; session: Session }) {
  const { ask } = useAsk()
  const label = visible(body.name ?? short(body.id))
  const order = (): Record<string, unknown> => ({ upload: body.id })
  return (
    <tr>
      <td class="name">
        <a href={`#/uploads/${encodeURIComponent(body.id)}`}>{label}</a>
      </td>
      <td class="name">{body.owner || '–'}</td>
      <td>
        <Bar offset={body.offset} total={body.size} label={label} />
      </td>
      <td class="number">{text('perSecond', size(body.rate))}</td>
      <td class="number">{body.left === null ? '–' : duration(body.left)}</td>
      <td class={`number ${body.silent > 10 ? 'bad' : ''}`}>
        {body.silent < 2 ? '–' : duration(body.silent)}
      </td>
      <td class="small">{body.client}</td>
      <td class="small">{body.server}</td>
      <td class="buttons">
        <button
          type="button"
          onClick={() =>
            ask({
              title: text('endRequest'),
              ask: text('endRequestAsk', label),
              name: 'end-request',
              order,
            })
          }
        >
          {text('endRequest')}
        </button>
        {session.revokes && (
          <button
            type="button"
            onClick={() =>
              ask({
                title: text('revoke'),
                ask: text('revokeAsk', label),
                destroys: true,
                name: 'revoke-upload',
                order,
              })
            }
          >
            {text('revoke')}
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
            })
          }
        >
          {text('remove')}
        </button>
      </td>
    </tr>
  )
}
