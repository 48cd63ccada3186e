import assert from 'node:assert/strict'
import { test } from 'node:test'
import { judge, NoAccessToken } from '../dist/errors.js'

const failure = (method, status, body = '', headers = {}) => ({
  method,
  status,
  body,
  header: (name) => headers[name] ?? null,
})

const EXPECTED = [
  // No answer, and answers of something in between.
  ['PATCH', null, 'retry'],
  ['HEAD', 200, 'retry'],
  ['POST', 302, 'retry'],
  ['POST', 502, 'retry'],
  ['PATCH', 507, 'retry'],
  // Come again.
  ['PATCH', 409, 'retry'],
  ['HEAD', 423, 'retry'],
  ['POST', 429, 'retry'],
  ['PATCH', 408, 'retry'],
  ['PATCH', 460, 'retry'],
  ['HEAD', 401, 'authenticate'],
  // It is not there (any more); a collection that is not there is another matter.
  ['HEAD', 404, 'restart', 'gone'],
  ['PATCH', 410, 'restart', 'gone'],
  ['REFRESH', 410, 'restart', 'gone'],
  ['POST', 404, 'fail', 'gone'],
  // Never.
  ['POST', 400, 'fail', 'rejected'],
  ['PATCH', 403, 'fail', 'forbidden'],
  ['POST', 412, 'fail', 'rejected'],
  ['POST', 413, 'fail', 'too-large'],
  ['PATCH', 415, 'fail', 'unsupported'],
]

for (const [method, status, expected, kind] of EXPECTED) {
  test(`${method} ${status}: ${expected}`, () => {
    const verdict = judge(failure(method, status))
    assert.equal(verdict.do, expected)
    if (kind) assert.equal(verdict.error.kind, kind)
  })
}

test('the server is waited for as long as it asks', () => {
  const after = (value) => judge(failure('PATCH', 503, '', { 'Retry-After': value })).after
  assert.equal(after('60'), 60_000)
  assert.equal(after('Wed, 21 Oct 2026 07:28:00 GMT'), null)
  assert.equal(after('-1'), null)
  assert.equal(judge(failure('PATCH', null)).after, null)
})

test('a failure to get a token is not taken for one of the server', () => {
  const thrown = new Error('logged out')
  const cause = new NoAccessToken('failed: logged out', thrown)
  const { do: next, error } = judge({ ...failure('POST', null), cause })
  assert.deepEqual([next, error.kind, error.cause], ['retry', 'network', thrown])
  assert.equal(error.message, 'getAccessToken failed: logged out')
  assert.equal(judge(failure('POST', null)).error.message, 'no answer from the server')
})

test("the server's code and words are told", () => {
  const line = judge(failure('POST', 413, 'ERR_MAX_SIZE_EXCEEDED: maximum size exceeded\n')).error
  assert.deepEqual([line.code, line.message], ['ERR_MAX_SIZE_EXCEEDED', 'maximum size exceeded'])
  const problem = judge(failure('POST', 400, '{"code": "ERR_X", "detail": "so it is"}')).error
  assert.deepEqual([problem.code, problem.message, problem.status], ['ERR_X', 'so it is', 400])
  const foreign = judge(failure('POST', 403, '<html>no</html>')).error
  assert.deepEqual([foreign.code, foreign.message], [undefined, 'the server answered 403'])
})

test('a duplicate is asked about', () => {
  const problem = {
    code: 'ERR_DUPLICATE_UPLOAD',
    state: 'pending',
    detail: 'begun before',
    fingerprint: 'f',
    location: 'https://x.example/files/1',
    offset: 5,
  }
  assert.deepEqual(judge(failure('POST', 409, JSON.stringify(problem))).duplicate, {
    state: 'pending',
    canResume: true,
    location: 'https://x.example/files/1',
    offset: 5,
    detail: 'begun before',
    fingerprint: 'f',
  })
  const { location, offset, ...complete } = { ...problem, state: 'complete' }
  const duplicate = judge(failure('POST', 409, JSON.stringify(complete))).duplicate
  assert.deepEqual([duplicate.state, duplicate.canResume], ['complete', false])
  // Elsewhere a 409 is a wrong offset, whatever its body says.
  assert.equal(judge(failure('PATCH', 409, JSON.stringify(problem))).do, 'retry')
  assert.equal(judge(failure('POST', 409, 'null')).do, 'retry')
})
