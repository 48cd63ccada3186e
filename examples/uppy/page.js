// Uppy's Dashboard with the uploader TusdPy: tokens, duplicates, and what an earlier visit left unfinished.

import { TusdPy } from '@tusd-py/upload-manager/uppy'
import Uppy from '@uppy/core'
import Dashboard from '@uppy/dashboard'

const { endpoint } = await (await fetch('settings')).json()

const uppy = new Uppy()
  .use(Dashboard, {
    inline: true,
    target: '#uppy',
    width: '100%',
    proudlyDisplayPoweredByUppy: false,
  })
  .use(TusdPy, { endpoint, getAccessToken, onDuplicate })
const { manager } = uppy.getPlugin('TusdPy')

/** Called before creations, and when a token was refused. Null where the server asks for none. */
async function getAccessToken() {
  const response = await fetch('access-token', { method: 'POST' })
  if (!response.ok) throw new Error(`no access token: ${response.status}`)
  return (await response.text()) || null
}

let asked = Promise.resolve()

/** Several files may be duplicates: one question after the other. */
function onDuplicate(duplicate, file) {
  const answer = asked.then(() => ask(duplicate, file))
  asked = answer
  return answer
}

function ask({ canResume, detail }, { name }) {
  const dialog = document.querySelector('#duplicate')
  dialog.querySelector('#question').textContent = `${name}: ${detail}.`
  dialog.querySelector('[value=resume]').hidden = !canResume
  dialog.returnValue = 'give-up'
  dialog.showModal()
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue), { once: true })
  })
}

async function showUnfinished() {
  const section = document.querySelector('#unfinished')
  const rows = (await manager.resumable()).map(({ id, name }) => {
    const row = document.createElement('li')
    row.textContent = `${name}: choose it again to go on `
    const button = row.appendChild(document.createElement('button'))
    button.textContent = 'Discard'
    button.onclick = () => manager.discard(id).finally(showUnfinished)
    return row
  })
  section.querySelector('ul').replaceChildren(...rows)
  section.hidden = rows.length === 0
}

manager.on('added', () => void showUnfinished())
manager.on('released', () => void showUnfinished())
manager.on('state', () => {
  const waiting = manager.uploads.filter(({ state }) => state === 'waiting').length
  document.querySelector('#waiting').textContent = waiting
    ? `${waiting} waiting for the server; they go on by themselves`
    : ''
})
await showUnfinished()
