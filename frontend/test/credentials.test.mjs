import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Credentials, Finished, RenewalFailed } from '../dist/credentials.js'

/** Credentials with a clock that stands still, and a server that answers from a list; what was asked is kept. */
function setUp({ answers = [], access = [], refreshEvery = 1_200_000 } = {}) {
  const asked = []
  const saved = []
  const clock = { now: 1_000_000 }
  const credentials = new Credentials({
    getAccessToken: async ({ rejected }) => {
      if (rejected !== undefined) access.shift()
      if (access[0] instanceof Error) throw access[0]
      return access[0] ?? null
    },
    refreshUrl: 'https://x.example/auth/refresh-upload-token',
    refreshEvery,
    now: () => clock.now,
    onChange: () => saved.push(credentials.token.value),
    async fetch(_url, { headers, body }) {
      asked.push([headers.Authorization.slice(7), body ? JSON.parse(body).upload_id : undefined])
      const [status, document, fields = {}] = answers.shift() ?? [500]
      if (status === 'network') throw new TypeError('fetch failed')
      return new Response(JSON.stringify(document ?? {}), { status, headers: fields })
    },
  })
  credentials.uploadId = 'abc'
  return { credentials, asked, saved, clock }
}

const token = (value, lasts = 3600) => [200, { upload_token: value, expires_in: lasts }]
/** Resolves as soon as the condition holds; fails if it does not within seconds, and leaves nothing behind. */
const soon = async (condition) => {
  for (let tries = 0; !condition(); tries++) {
    assert.ok(tries < 1000, String(condition))
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

test('a creation shows the access token, all else the upload token', async () => {
  const { credentials } = setUp({ access: ['user'] })
  assert.equal(await credentials.authorization('PATCH'), 'Bearer user')
  credentials.adopt('upload', 3_600_000)
  assert.equal(await credentials.authorization('POST'), 'Bearer user')
  for (const method of ['HEAD', 'PATCH', 'DELETE']) {
    assert.equal(await credentials.authorization(method), 'Bearer upload')
  }
  assert.equal(await setUp().credentials.authorization('POST'), null)
})

test('what cannot be a token is said to be none', async () => {
  const { credentials } = setUp({ access: ['<!doctype html>\n<title>Log in</title>'] })
  await assert.rejects(credentials.authorization('POST'), /getAccessToken returned no token/)
  assert.equal(await setUp({ access: [''] }).credentials.authorization('POST'), null)
})

test('what getAccessToken throws is told', async () => {
  const thrown = new Error('logged out')
  const { credentials } = setUp({ access: [thrown] })
  await assert.rejects(credentials.authorization('POST'), (error) => {
    assert.deepEqual([error.message, error.cause], ['getAccessToken failed: logged out', thrown])
    return true
  })
})

test("a token's life is measured by the server's clock", async () => {
  const { credentials, clock } = setUp({ answers: [token('new')] })
  const headers = {
    'Upload-Token': 'old',
    Date: 'Sat, 01 Jan 2050 00:00:00 GMT',
    'Upload-Token-Expires': 'Sat, 01 Jan 2050 01:00:00 GMT',
  }
  credentials.adoptFrom({ header: (name) => headers[name] })
  clock.now += 3_590_000
  assert.equal(await credentials.authorization('PATCH'), 'Bearer old')
  clock.now += 6_000
  assert.equal(await credentials.authorization('PATCH'), 'Bearer new')
})

test('it is renewed once however many ask', async () => {
  const { credentials, asked, saved } = setUp({ answers: [token('new'), token('newer')] })
  credentials.adopt('old', 1000)
  await Promise.all([credentials.renew(), credentials.renew(), credentials.replace('PATCH')])
  assert.deepEqual(asked, [['old', undefined]])
  assert.deepEqual(saved, ['old', 'new'])
})

test('beyond the grace period the access token renews it, and a refused one is replaced', async () => {
  const { credentials, asked } = setUp({
    access: ['stale', 'fresh'],
    answers: [[401], [401], token('new')],
  })
  credentials.adopt('old', 0)
  assert.equal(await credentials.authorization('HEAD'), 'Bearer new')
  assert.deepEqual(asked, [
    ['old', undefined],
    ['stale', 'abc'],
    ['fresh', 'abc'],
  ])
})

test('what does not allow a renewal is told', async () => {
  const refusal = async (answers, access = []) => {
    const { credentials } = setUp({ answers, access })
    credentials.adopt('old', 0)
    return credentials.authorization('PATCH').catch((problem) => problem)
  }
  assert.ok((await refusal([[409, { code: 'ERR_UPLOAD_FINISHED' }]])) instanceof Finished)
  const statuses = []
  for (const answers of [[[410]], [[401]], [[401], [403]], [['network']], [[200, { none: 1 }]]]) {
    const problem = await refusal(answers, answers.length > 1 ? ['user'] : [])
    assert.ok(problem instanceof RenewalFailed)
    statuses.push(problem.failure.status)
  }
  assert.deepEqual(statuses, [410, 401, 403, null, null])
})

test('it is renewed in time, in a third of its life or less', async () => {
  const { credentials, asked, clock } = setUp({
    answers: [token('second', 0.15), token('third', 3600), token('fourth', 3600)],
    refreshEvery: 1000,
  })
  credentials.adopt('first', 60)
  credentials.begin()
  await soon(() => asked.length === 2)
  assert.deepEqual(asked, [
    ['first', undefined],
    ['second', undefined],
  ])
  clock.now += 900
  credentials.begin()
  await soon(() => asked.length === 3)
  credentials.stop()
})

test('a renewal that fails on its way is tried again', async () => {
  const { credentials, asked } = setUp({ answers: [['network'], [503], token('new')] })
  credentials.adopt('old', 3)
  credentials.begin()
  await soon(() => credentials.token.value === 'new')
  credentials.stop()
  assert.equal(asked.length, 3)
})

test('one that is refused is not tried again by itself', async () => {
  const { credentials, asked } = setUp({ answers: [[410], token('new')] })
  credentials.adopt('old', 3)
  credentials.begin()
  await soon(() => asked.length === 1)
  await new Promise((resolve) => setTimeout(resolve, 400))
  assert.equal(asked.length, 1)
  credentials.stop()
})
