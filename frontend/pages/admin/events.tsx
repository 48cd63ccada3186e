// Events that failed or wait for delivery.

import { useState } from 'preact/hooks'
import type { EventPage, KeptEvent, Session } from './api.js'
import { get } from './api.js'
import { Problem, useAsk, useLoaded } from './ask.js'
import { count, duration, short, since } from './format.js'
import { text } from './texts.js'

export function Events({ session }: { session: Session }) {
  const [box, setBox] = useState<'failed' | 'waiting'>('failed')
  const { ask } = useAsk()
  const { found, problem, reload } = useLoaded<EventPage>(
    () => get('/events', { box, limit: 200 }),
    box,
  )
  const everything = { name: '', order: () => ({ every: true }), after: reload }
  return (
    <section aria-labelledby="events">
      <div class="heading">
        <h1 id="events">{text('events')}</h1>
        <label>
          <span class="only-heard">{text('state')}</span>
          <select
            value={box}
            onChange={(event) => setBox(event.currentTarget.value as 'failed' | 'waiting')}
          >
            <option value="failed">{text('failedBox')}</option>
            <option value="waiting">{text('waitingBox')}</option>
          </select>
        </label>
        {box === 'failed' && found && found.events.length > 0 && (
          <>
            <button
              type="button"
              onClick={() =>
                ask({
                  ...everything,
                  title: text('replayAll'),
                  ask: text('replayAsk', text('allFailed')),
                  name: 'replay-events',
                })
              }
            >
              {text('replayAll')}
            </button>
            <button
              type="button"
              onClick={() =>
                ask({
                  ...everything,
                  title: text('dropAll'),
                  ask: text('dropAsk', text('allFailed')),
                  destroys: true,
                  name: 'drop-events',
                })
              }
            >
              {text('dropAll')}
            </button>
          </>
        )}
      </div>
      <Problem words={problem} />
      {!session.delivers_events && <p class="quiet">{text('noDelivery')}</p>}
      {found && session.delivers_events && (
        <p class="quiet">
          {text('eventCounts', count(found.failed), count(found.waiting))}
          {found.oldest !== null &&
            `, ${text('oldestEvent', duration(Date.now() / 1000 - found.oldest))}`}
        </p>
      )}
      {found && found.events.length === 0 && session.delivers_events && (
        <p class="quiet">{text('noEvents')}</p>
      )}
      {found && found.events.length > 0 && <EventTable events={found.events} reload={reload} />}
    </section>
  )
}

export function EventTable({ events, reload }: { events: KeptEvent[]; reload: () => void }) {
  const { ask } = useAsk()
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>{text('type')}</th>
            <th>{text('file')}</th>
            <th>{text('kept')}</th>
            <th>{text('attempts')}</th>
            <th>{text('problem')}</th>
            <th>{text('actions')}</th>
          </tr>
        </thead>
        <tbody>
          {events.map((event) => {
            const label = `${event.type ?? '?'} ${short(event.upload)}`
            const order = (): Record<string, unknown> => ({ events: [event.id] })
            return (
              <tr key={event.id}>
                <td>{event.type ?? '?'}</td>
                <td>
                  <a href={`#/uploads/${encodeURIComponent(event.upload)}`}>
                    {short(event.upload)}
                  </a>
                </td>
                <td>{since(event.kept)}</td>
                <td class="number">{count(event.attempts)}</td>
                <td>{event.problem ?? '–'}</td>
                <td class="buttons">
                  {event.box === 'failed' && (
                    <>
                      <button
                        type="button"
                        onClick={() =>
                          ask({
                            title: text('replay'),
                            ask: text('replayAsk', label),
                            name: 'replay-events',
                            order,
                            after: reload,
                          })
                        }
                      >
                        {text('replay')}
                      </button>
                      <button
                        type="button"
                        onClick={() =>
                          ask({
                            title: text('drop'),
                            ask: text('dropAsk', label),
                            destroys: true,
                            name: 'drop-events',
                            order,
                            after: reload,
                          })
                        }
                      >
                        {text('drop')}
                      </button>
                    </>
                  )}
                </td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}
