// Small texts that the browser keeps for a page. Where it keeps nothing for this site (cookies are blocked), even looking for its
// storage throws; then they last as long as the page.

type Place = 'localStorage' | 'sessionStorage'

const meanwhile = new Map<string, string>()

export function kept(place: Place, name: string): string | null {
  try {
    return window[place].getItem(name)
  } catch {
    return meanwhile.get(name) ?? null
  }
}

/** value: null to forget it. */
export function keep(place: Place, name: string, value: string | null): void {
  try {
    if (value === null) window[place].removeItem(name)
    else window[place].setItem(name, value)
  } catch {
    if (value === null) meanwhile.delete(name)
    else meanwhile.set(name, value)
  }
}
