// The field for an access token, where the server asks for one and no endpoint gives it.

import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { useShared } from './context.js'

export function TokenField(): JSX.Element | null {
  const { model, say } = useShared()
  const { tokens, settings } = model
  const [text, setText] = useState('')
  if (settings.auth !== 'jwt') return null
  if (tokens.url) {
    return tokens.unavailable ? (
      <p class="note bad" role="alert">
        {say('tokenEndpoint')}
      </p>
    ) : null
  }
  if (tokens.has && !tokens.needed) {
    return (
      <p class="token-set">
        {say('tokenSet')}{' '}
        <button type="button" class="link" onClick={() => tokens.change()}>
          {say('tokenChange')}
        </button>
      </p>
    )
  }
  const submit = (event: Event) => {
    event.preventDefault()
    if (text.trim()) tokens.enter(text.trim())
    setText('')
  }
  return (
    <form class="card token" onSubmit={submit}>
      <h2>{say('tokenTitle')}</h2>
      {tokens.refused ? (
        <p class="note bad" role="alert">
          {say('tokenRefused')}
        </p>
      ) : null}
      <label for="token">{say('tokenLabel')}</label>
      <div class="line">
        <input
          id="token"
          type="password"
          autocomplete="off"
          spellcheck={false}
          aria-describedby="token-kept"
          value={text}
          onInput={({ currentTarget }) => setText(currentTarget.value)}
        />
        <button type="submit" class="primary">
          {say('tokenUse')}
        </button>
      </div>
      <p id="token-kept" class="info">
        {say('tokenKept')}
      </p>
    </form>
  )
}
