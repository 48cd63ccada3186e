// What all parts of the page need: the model, the language and its texts.

import { createContext } from 'preact'
import { useContext } from 'preact/hooks'
import type { Model } from './model.js'
import type { Language, Say } from './texts.js'

export interface Shared {
  model: Model
  language: Language
  say: Say
}

const Context = createContext<Shared | null>(null)
export const Sharing = Context.Provider

export function useShared(): Shared {
  const shared = useContext(Context)
  if (shared === null) throw new Error('outside of the page')
  return shared
}
