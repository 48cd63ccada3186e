import assert from 'node:assert/strict'
import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fingerprintOf, openFile, sourceOf } from '../dist/node.js'

const MIB = 1024 * 1024
const named = (parts, name, lastModified = 1) =>
  Object.assign(new Blob(parts, { type: 'x/y' }), { name, lastModified })

test('a file is known again, and told from others', async () => {
  const bytes = new Uint8Array(MIB)
  const of = (file) => fingerprintOf(sourceOf(file))
  const first = await of(named([bytes], 'a'))
  assert.equal(await of(named([bytes], 'a')), first)
  const others = [named([bytes], 'b'), named([bytes], 'a', 2), named([bytes.slice(1)], 'a')]
  for (const place of [0, MIB / 2, MIB - 1]) {
    const changed = bytes.slice()
    changed[place] = 1
    others.push(named([changed], 'a'))
  }
  for (const other of others) assert.notEqual(await of(other), first)
  assert.notEqual(await of(named([], 'a')), first)
})

test('a file of the disk that was changed cannot be read on', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'source-'))
  try {
    const path = join(directory, 'a.bin')
    await writeFile(path, 'hello')
    const source = await openFile(path, 'text/plain')
    assert.deepEqual([source.name, source.size, source.type], ['a.bin', 5, 'text/plain'])
    assert.equal(Buffer.from(await source.read(1, 3)).toString(), 'el')
    await utimes(path, 1, 1)
    await assert.rejects(source.read(0, 1), /changed/)
    await assert.rejects(fingerprintOf(source), { kind: 'source' })
    await rm(path)
    await assert.rejects(source.read(0, 1))
  } finally {
    await rm(directory, { recursive: true })
  }
})
