import assert from 'node:assert/strict'
import { test } from 'node:test'
import { backoff, nextOnline, pause, Slots, Stopped, unlessStopped } from '../dist/waiting.js'

const { signal: never } = new AbortController()

test('back-off doubles up to its most, and leaves up to half of it to chance', () => {
  const delays = { min: 1000, max: 60_000 }
  const most = [1, 2, 3, 7, 100, 10_000].map((failures) => backoff(failures, delays, () => 0))
  assert.deepEqual(most, [1000, 2000, 4000, 60_000, 60_000, 60_000])
  assert.equal(
    backoff(3, delays, () => 1),
    2000,
  )
})

test('a pause ends when it is broken off, and when it is woken', { timeout: 60_000 }, async () => {
  const stop = new AbortController()
  const waiting = pause(60_000, stop.signal)
  stop.abort()
  await assert.rejects(waiting, Stopped)
  await assert.rejects(pause(1, stop.signal), Stopped)
  await assert.rejects(unlessStopped(new Promise(() => {}), stop.signal), Stopped)
  await pause(60_000, never, Promise.resolve())
})

test('the network is waited for', { timeout: 60_000 }, async () => {
  const listeners = new Set()
  const network = {
    online: false,
    onChange(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
  const { came } = nextOnline(network)
  for (const listener of listeners) listener()
  assert.equal(listeners.size, 1)
  network.online = true
  for (const listener of listeners) listener()
  await came
  assert.equal(listeners.size, 0)
})

test('places go to who waited longest, of those that come first', { timeout: 60_000 }, async () => {
  const slots = new Slots(2)
  const order = []
  const take = async (name, priority, signal = never) => {
    const release = await slots.take(priority, signal)
    order.push(name)
    return release
  }
  const first = await take('a', 0)
  await take('b', 0)
  assert.equal(slots.free, false)
  const stop = new AbortController()
  const stopped = take('stopped', 2, stop.signal)
  const waiting = [take('c', 0), take('d', 0), take('e', 1)]
  stop.abort()
  await assert.rejects(stopped, Stopped)
  first()
  first()
  const release = await waiting[2]
  assert.deepEqual(order, ['a', 'b', 'e'])
  release()
  await waiting[0]
  assert.deepEqual(order, ['a', 'b', 'e', 'c'])
})
