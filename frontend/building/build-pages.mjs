// Builds the pages that the server itself shows. Every folder of pages/ with a page.html is one: its main.tsx and style.css are
// bundled, named by a hash of their content, and written beside their compressed forms. `build.py` calls this.
//
// node build-pages.mjs OUT

import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'
import { build } from 'esbuild'

/** Where the server has the files, seen from the page; `tusd_py/web/pages/built.py` says the same. */
const ASSETS = '_pages/'
const HERE = import.meta.dirname ?? new URL('.', import.meta.url).pathname
const PAGES = join(HERE, '..', 'pages')

const [out] = process.argv.slice(2)

async function bundle(entry) {
  const { outputFiles } = await build({
    entryPoints: [entry],
    // Pages find their packages here, where the folders above have none.
    nodePaths: [join(HERE, 'node_modules')],
    bundle: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    minify: true,
    legalComments: 'none',
    jsx: 'automatic',
    jsxImportSource: 'preact',
  })
  return Buffer.from(outputFiles[0].contents)
}

/** Writes a file with its compressed forms. */
async function write(name, bytes) {
  await writeFile(join(out, name), bytes)
  const params = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY }
  await writeFile(join(out, `${name}.br`), brotliCompressSync(bytes, { params }))
  await writeFile(join(out, `${name}.gz`), gzipSync(bytes, { level: 9 }))
}

async function asset(page, entry, extension) {
  const bytes = await bundle(entry)
  const hash = createHash('sha256').update(bytes).digest('hex').slice(0, 16)
  const name = `${page}-${hash}.${extension}`
  await write(name, bytes)
  return ASSETS + name
}

async function buildPage(folder) {
  const page = basename(folder)
  const html = await readFile(join(folder, 'page.html'), 'utf8')
  const script = await asset(page, join(folder, 'main.tsx'), 'js')
  const style = await asset(page, join(folder, 'style.css'), 'css')
  // Not compressed here: the server writes its settings into it.
  await writeFile(
    join(out, `${page}.html`),
    html.replace('%SCRIPT%', script).replace('%STYLE%', style),
  )
}

await mkdir(out, { recursive: true })
for (const name of await readdir(PAGES)) {
  const folder = join(PAGES, name)
  if (existsSync(join(folder, 'page.html'))) await buildPage(folder)
}
