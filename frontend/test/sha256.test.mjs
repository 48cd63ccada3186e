import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { inPieces } from '../dist/digest.js'
import { Sha256 } from '../dist/sha256.js'

const bytes = (size) => Uint8Array.from({ length: size }, (_, index) => (index * 31 + size) % 256)
const expected = (data) => createHash('sha256').update(data).digest('hex')

test('every length around the ends of blocks', () => {
  for (let size = 0; size < 200; size += 1) {
    assert.equal(new Sha256().update(bytes(size)).digest(), expected(bytes(size)))
  }
})

test('pieces of any size', () => {
  const data = bytes(1000)
  for (const step of [1, 7, 63, 64, 65, 500]) {
    const sum = new Sha256()
    for (let at = 0; at < data.length; at += step) sum.update(data.subarray(at, at + step))
    assert.equal(sum.digest(), expected(data))
  }
})

test('a file that is read in pieces', async () => {
  const data = new Uint8Array(9 * 1024 * 1024).fill(7)
  const source = { size: data.length, read: async (start, end) => data.slice(start, end) }
  assert.equal(await inPieces(source), expected(data))
})

test('a signal ends it', async () => {
  const source = { size: 10, read: async () => new Uint8Array(10) }
  await assert.rejects(inPieces(source, AbortSignal.abort(new Error('enough'))), /enough/)
})
