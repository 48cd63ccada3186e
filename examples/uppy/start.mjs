// Bundles the page and serves it at http://127.0.0.1:3000/. ENDPOINT: the collection of the upload server. With TUSD_JWT_SECRET, the
// upload server's own, it also issues access tokens, which is the part of your application.

import { createHmac } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const { ENDPOINT = 'http://127.0.0.1:8080/files/', PORT = '3000', TUSD_JWT_SECRET } = process.env
const LIFETIME_SECONDS = Number(process.env.TOKEN_LIFETIME ?? 300)

const path = (name) => fileURLToPath(new URL(name, import.meta.url))

const { outputFiles } = await build({
  entryPoints: [path('page.js'), path('page.css')],
  // In an application: `npm install path/to/frontend`, and neither of these.
  alias: { '@tusd-py/upload-manager/uppy': path('../../frontend/src/uppy.ts') },
  nodePaths: [path('node_modules')],
  bundle: true,
  write: false,
  outdir: path('.'),
  format: 'esm',
  target: 'es2022',
  minify: true,
  loader: { '.svg': 'dataurl' },
})
const bundled = (extension) => outputFiles.find((file) => file.path.endsWith(extension)).text

const base64url = (text) => Buffer.from(text).toString('base64url')

/** An access token (docs/tokens.md). Here everybody is `somebody`; your application knows who is logged in. */
function accessToken() {
  if (!TUSD_JWT_SECRET) return ''
  const now = Math.floor(Date.now() / 1000)
  const claims = {
    sub: 'somebody',
    scope: 'uploads:create uploads:read uploads:delete',
    iat: now,
    exp: now + LIFETIME_SECONDS,
  }
  const signed = [{ alg: 'HS256', typ: 'JWT' }, claims]
    .map((part) => base64url(JSON.stringify(part)))
    .join('.')
  return `${signed}.${createHmac('sha256', TUSD_JWT_SECRET).update(signed).digest('base64url')}`
}

const answers = {
  'GET /': ['text/html; charset=utf-8', () => readFile(path('index.html'))],
  'GET /page.js': ['text/javascript; charset=utf-8', () => bundled('.js')],
  'GET /page.css': ['text/css; charset=utf-8', () => bundled('.css')],
  'GET /settings': ['application/json', () => JSON.stringify({ endpoint: ENDPOINT })],
  'GET /access-token': ['text/plain', accessToken],
  'POST /access-token': ['text/plain', accessToken],
}

const server = createServer(async ({ method, url }, response) => {
  const [type, content] = answers[`${method} ${url}`] ?? []
  if (!type) response.writeHead(404).end()
  else
    response
      .writeHead(200, { 'Content-Type': type, 'Cache-Control': 'no-store' })
      .end(await content())
})
server.listen(Number(PORT), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}/ uploads to ${ENDPOINT}`)
})
