import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Speed } from '../dist/speed.js'

test('a steady rate is told as it is, a burst is smoothed', () => {
  const speed = new Speed()
  speed.begin(1_000_000, 0)
  assert.equal(speed.rate, null)
  for (let second = 1; second <= 10; second++) speed.add(1_000_000 + second * 1000, second * 1000)
  assert.equal(Math.round(speed.rate), 1000)
  speed.add(1_020_000, 11_000)
  assert.ok(speed.rate > 1500 && speed.rate < 5000, String(speed.rate))
})

test('it says nothing of moments, nor of bytes that are sent again', () => {
  const speed = new Speed()
  speed.begin(0, 0)
  speed.add(65_536, 1)
  assert.equal(speed.rate, null)
  speed.add(1000, 1000)
  speed.begin(500, 2000)
  assert.equal(speed.rate, null)
  speed.add(100, 3000)
  assert.equal(speed.rate, 0)
})
