// Typed events, for pages and for frameworks alike.

type Listeners<Events extends { [Name in keyof Events]: unknown[] }> = {
  [Name in keyof Events]?: Set<(...values: Events[Name]) => void>
}

/** Calls listeners. Events: for each name, what listeners are given. */
export class Emitter<Events extends { [Name in keyof Events]: unknown[] }> {
  readonly #listeners: Listeners<Events> = {}

  /** Listens; returns what ends that. */
  on<Name extends keyof Events>(
    name: Name,
    listener: (...values: Events[Name]) => void,
  ): () => void {
    this.#listeners[name] ??= new Set()
    const listeners = this.#listeners[name]
    listeners?.add(listener)
    return () => {
      listeners?.delete(listener)
    }
  }

  /** A listener that throws disturbs neither the others nor the upload; the page's console has it. */
  protected emit<Name extends keyof Events>(name: Name, ...values: Events[Name]): void {
    for (const listener of [...(this.#listeners[name] ?? [])]) {
      try {
        listener(...values)
      } catch (error) {
        queueMicrotask(() => {
          throw error
        })
      }
    }
  }
}
