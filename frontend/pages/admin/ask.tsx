// Asks before an action, carries it out, and says how it went.

import type { ComponentChildren } from 'preact'
import { createContext } from 'preact'
import { useContext, useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { act } from './api.js'
import { text } from './texts.js'

interface Question {
  title: string
  ask: string
  /** Whether something is destroyed, which the button shows. */
  destroys?: boolean
  /** Days to choose among, for what takes a time. */
  days?: number[]
  name: string
  order: (days: number) => Record<string, unknown>
  after?: () => void
}

type Ask = (question: Question) => void
type Say = (message: string, isBad?: boolean) => void

const Asking = createContext<{ ask: Ask; say: Say }>({ ask: () => {}, say: () => {} })

export const useAsk = (): { ask: Ask; say: Say } => useContext(Asking)

export function AskBeforeActions({ children }: { children: ComponentChildren }) {
  const [question, setQuestion] = useState<Question | null>(null)
  const [message, setMessage] = useState<{ text: string; isBad: boolean } | null>(null)
  const say: Say = (words, isBad = false) => setMessage({ text: words, isBad })

  const carryOut = async (asked: Question, days: number): Promise<void> => {
    setQuestion(null)
    // Or "Done" would be read as the result of this action while it runs.
    setMessage(null)
    try {
      const done = await act(asked.name, asked.order(days))
      say(text('done', done.detail))
    } catch (problem) {
      say(text('failed', (problem as Error).message), true)
    }
    asked.after?.()
  }

  return (
    <Asking.Provider value={{ ask: setQuestion, say }}>
      {children}
      <div class={`message ${message?.isBad ? 'bad' : 'good'}`} role="status">
        {message && (
          <>
            <span>{message.text}</span>
            <button type="button" aria-label={text('cancel')} onClick={() => setMessage(null)}>
              ×
            </button>
          </>
        )}
      </div>
      {question && (
        <Dialog
          question={question}
          onNo={() => setQuestion(null)}
          onYes={(days) => carryOut(question, days)}
        />
      )}
    </Asking.Provider>
  )
}

function Dialog(props: { question: Question; onNo: () => void; onYes: (days: number) => void }) {
  const { question } = props
  const dialog = useRef<HTMLDialogElement>(null)
  const [days, setDays] = useState(question.days?.[0] ?? 0)
  // Before the next key is pressed.
  useLayoutEffect(() => dialog.current?.showModal(), [])
  return (
    <dialog ref={dialog} aria-labelledby="asked" onClose={props.onNo}>
      <h2 id="asked">{question.title}</h2>
      <p>{question.ask}</p>
      {question.days && (
        <p>
          {question.days.map((each) => (
            <label key={each} class="choice">
              <input
                type="radio"
                name="days"
                checked={each === days}
                onChange={() => setDays(each)}
              />{' '}
              {text('days', each)}
            </label>
          ))}
        </p>
      )}
      <div class="buttons">
        <button type="button" onClick={props.onNo}>
          {text('cancel')}
        </button>
        <button
          type="button"
          class={question.destroys ? 'danger' : 'primary'}
          onClick={() => props.onYes(days)}
        >
          {question.title}
        </button>
      </div>
    </dialog>
  )
}

/** Loads a document, again when `key` changes; `reload` loads it once more. */
export function useLoaded<T>(
  load: () => Promise<T>,
  key: string,
): { found: T | null; problem: string; reload: () => void } {
  const [found, setFound] = useState<T | null>(null)
  const [problem, setProblem] = useState('')
  const [again, setAgain] = useState(0)
  useEffect(() => {
    let isWanted = true
    load().then(
      (document) => {
        if (!isWanted) return
        setFound(document)
        setProblem('')
      },
      (error) => isWanted && setProblem((error as Error).message),
    )
    return () => {
      isWanted = false
    }
  }, [key, again])
  return { found, problem, reload: () => setAgain((count) => count + 1) }
}

export function Problem({ words }: { words: string }) {
  return words ? (
    <p class="problem" role="alert">
      {text('failed', words)}
    </p>
  ) : null
}
