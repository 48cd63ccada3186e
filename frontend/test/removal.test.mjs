import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { judge } from '../dist/errors.js'
import { failureOf } from '../dist/removal.js'

test('what is printed of a failure shows no token', () => {
  const originalRequest = { getMethod: () => 'PATCH', headers: { Authorization: 'Bearer SECRET' } }
  const error = Object.assign(new Error('tus: unexpected response'), {
    originalRequest,
    originalResponse: null,
  })
  const failure = failureOf(error)
  assert.deepEqual([failure.method, failure.cause.message], ['PATCH', 'tus: unexpected response'])
  assert.doesNotMatch(inspect(judge(failure).error, { depth: 9 }), /SECRET/)
})
