import assert from 'node:assert/strict'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { FileStore, MemoryStore } from '../dist/node.js'

const record = (id, offset = 0) => ({
  id,
  namespace: '',
  endpoint: 'https://x.example/files/',
  url: `https://x.example/files/${id}`,
  fingerprint: 'f',
  name: 'a.bin',
  size: 10,
  metadata: { a: 'b' },
  offset,
  token: 't',
  tokenExpires: 1,
  created: 1,
  updated: 1,
  cancelled: false,
})

async function keeps(store) {
  assert.deepEqual(await store.list(), [])
  await store.delete('unknown')
  // All at once, as uploads do; the last word on one counts.
  await Promise.all([store.put(record('1')), store.put(record('2')), store.put(record('1', 5))])
  const kept = (await store.list()).sort((one, other) => (one.id < other.id ? -1 : 1))
  assert.deepEqual(kept, [record('1', 5), record('2')])
  kept[0].metadata.a = 'changed'
  assert.equal((await store.list()).find(({ id }) => id === '1').metadata.a, 'b')
  await store.delete('1')
  assert.deepEqual(await store.list(), [record('2')])
}

test('in memory', () => keeps(new MemoryStore()))

test('in a file that nobody else reads, also for the next process', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'store-'))
  try {
    const path = join(directory, 'uploads.json')
    await keeps(new FileStore(path))
    assert.deepEqual(await new FileStore(path).list(), [record('2')])
    assert.equal((await stat(path)).mode & 0o777, 0o600)
  } finally {
    await rm(directory, { recursive: true })
  }
})
